"""The version: read by the build, the command line, and whatever writes down what made a file."""

__version__ = "0.1.0"
