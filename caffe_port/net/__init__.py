"""Modules wired and run."""
