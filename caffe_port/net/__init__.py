"""Modules wired together and run."""
