"""Files nobody vouches for: read within limits, written whole or not at all."""
