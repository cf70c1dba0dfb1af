"""Parameter-efficient RLHF for encoder-decoder models in JAX.

`perlhf_jax.load(path)` gives a model with `score`, `logprobs` and `generate` on
lists of strings, and of images; see `stages.text_model`.

Every command is a Python function too, which needs no gin: `perlhf train_sft`
calls `perlhf_jax.stages.train_sft.train_sft`. As is usual in Python, they show
nothing but warnings until a program asks for more. To see what the commands
print, call `perlhf_jax.logs.show()` before other imports.
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
  # Imports take seconds, which `import perlhf_jax` alone must not.
  from perlhf_jax.stages import text_model

  return text_model.load(path, **options)
