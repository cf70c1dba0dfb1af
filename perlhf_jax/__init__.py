"""Parameter-efficient RLHF for encoder-decoder models in JAX.

Every command is a Python function too, which needs no gin: `perlhf train_sft`
calls `perlhf_jax.stages.train_sft.train_sft`. As is usual in Python, they show
nothing but warnings until a program asks for more. To see what the commands
print, call `perlhf_jax.logs.show()` before other imports.
"""
