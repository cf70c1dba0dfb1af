"""What all training runs share: MODEL_DIR, set-up, description, the loop."""
