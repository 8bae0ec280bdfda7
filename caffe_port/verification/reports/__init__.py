"""A Report for a terminal, as a page, and as JUnit XML."""
