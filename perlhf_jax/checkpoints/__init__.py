"""Trained models: loading, metadata and formats of checkpoints."""
