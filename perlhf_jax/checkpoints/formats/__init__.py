"""Formats of checkpoints, one a file, in one registry."""
