"""Losses, KL estimates, returns and metrics. Arrays in, arrays out."""
