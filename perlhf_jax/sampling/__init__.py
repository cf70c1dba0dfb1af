"""Decoding: samples with their log-probabilities, and beam search."""
