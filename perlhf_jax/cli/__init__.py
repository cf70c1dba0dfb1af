"""The command line: commands, their flags, and their gin configurations."""
