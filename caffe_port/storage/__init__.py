"""Untrusted files, read within limits, and output that is written completely or not at all."""
