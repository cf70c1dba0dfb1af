"""Decoding: sampling with log-probabilities, and beam search."""
