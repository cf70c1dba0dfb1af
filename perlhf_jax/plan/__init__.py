"""`perlhf plan`, and the check of a command before it starts."""
