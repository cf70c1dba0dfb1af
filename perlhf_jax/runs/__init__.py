"""Shared parts of all training runs: MODEL_DIR, set-up, metadata, the loop."""
