"""Checkpoint formats, one per file, in one registry."""
