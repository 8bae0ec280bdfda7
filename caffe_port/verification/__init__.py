"""Compares a net with a reference, layer by layer."""
