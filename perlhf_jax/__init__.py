"""Parameter-efficient RLHF for encoder-decoder models in JAX.

`perlhf_jax.load(path)` returns a model whose `score`, `logprobs` and `generate`
take lists of strings and of images; see `stages.text_model`.

Every command is also a Python function that needs no gin: `perlhf train_sft`
calls `perlhf_jax.stages.train_sft.train_sft`. These functions log only warnings
by default. To see what the commands print, call `perlhf_jax.logs.show()` before
other imports.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from perlhf_jax.stages import text_model


def load(path: str, **options: Any) -> 'text_model.TextModel':
  """Loads a checkpoint of any format; see `stages.text_model.load`.

  Args:
    path: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    **options: `base_checkpoint`, `batch_size`, `mesh_shape`.
  """
  # Imported here because it takes seconds; `import perlhf_jax` must be fast.
  from perlhf_jax.stages import text_model

  return text_model.load(path, **options)
