"""Sweeps: many runs of one command, with tuned learning rates, compared."""
