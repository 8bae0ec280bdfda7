"""Accuracy: its measurement, the published figures, and their reproduction."""
