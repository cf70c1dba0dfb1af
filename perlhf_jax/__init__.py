"""Parameter-efficient RLHF for encoder-decoder models in JAX."""
