"""Flax Linen models: T5, LoRA layers, heads and the roles built from them."""
