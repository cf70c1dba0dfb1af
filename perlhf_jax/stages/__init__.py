"""The functions of the commands, one per file."""
