"""The commands, each readable from top to bottom."""
