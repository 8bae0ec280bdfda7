"""Files that nobody vouches for, read within limits and written whole or not at all."""
