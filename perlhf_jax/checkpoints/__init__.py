"""Trained models: how one is loaded, what it says of itself, every format."""
