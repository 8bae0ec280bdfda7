"""From a file to the NetSpec of one phase."""
