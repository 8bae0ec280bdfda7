"""Renders a Report for a terminal, as an HTML page, and as JUnit XML."""
