"""Matches the tensors of a Hugging Face T5 to parameters.

Every tensor must be used and every parameter filled. Only the embedding may
occur several times: transformers has written it under up to four names, or
under any one of them.
"""

from collections.abc import Iterable, Mapping

from etils import epath
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.interop import hf_names
from perlhf_jax.interop import safetensors_files


def embedding_names(
  tensors: Iterable[str], lm_head_is_copy: bool
) -> tuple[str, ...]:
  """Returns the tensors that hold the embedding; the first is to be read.

  Args:
    tensors: names of all tensors.
    lm_head_is_copy: whether the output layer is also the embedding.
  """
  names = (hf_names.SHARED, *hf_names.EMBEDDING_COPIES)
  if lm_head_is_copy:
    names = (*names, hf_names.LM_HEAD)
  # Without any of them, the error message reports the first as missing.
  return tuple(name for name in names if name in tensors) or names[:1]


def match(
  table: tuple[hf_names.Entry, ...],
  shapes: Mapping[str, tuple[int, ...]],
  embeddings: tuple[str, ...],
  tied: bool,
  what: str,
) -> dict[hf_names.Entry, str]:
  """Chooses the tensor to read for each parameter.

  Args:
    table: entries of all parameters.
    shapes: shapes of all tensors, by name.
    embeddings: see `embedding_names`.
    tied: whether the embedding replaces an absent output layer.
    what: the directory, for messages.

  Raises:
    CheckpointError: tensors are missing, left over or of another shape.
  """
  sources = {entry: entry.tensor for entry in table}
  for entry in table:
    absent = entry.tensor not in shapes
    if entry.path == hf_names.EMBEDDING or (
      entry.path == hf_names.LOGITS and absent and tied
    ):
      sources[entry] = embeddings[0]
  check_names(
    expected=set(sources.values()),
    found=set(shapes) - set(hf_names.UNUSED) - set(embeddings[1:]),
    what=f'{what} does not hold the model that its config.json describes',
    kind='tensors',
  )
  for entry, name in sources.items():
    check_shape(
      f'{what}: tensor {name}', shapes[name], entry.tensor_shape, 'config.json'
    )
  return sources


def check_names(
  *,
  expected: set[str],
  found: set[str],
  what: str,
  kind: str,
  whole: str = 'encoder-decoder',
) -> None:
  """Raises a `CheckpointError` that lists missing and unexpected names.

  Args:
    expected: names that should be there.
    found: names that are there.
    what: the problem if they differ, for the message.
    kind: kind of the named things, in the plural.
    whole: model to which the names must belong.
  """
  problems = [
    f'{verb} {kind}: {safetensors_files.first(sorted(names))}'
    for names, verb in (
      (expected - found, 'missing'),
      (found - expected, 'unexpected'),
    )
    if names
  ]
  if problems:
    raise errors.CheckpointError(
      f'{what}; {"; ".join(problems)}. Weights and configuration must be '
      f'of one whole {whole}.'
    )


def check_shape(
  what: str, found: tuple[int, ...], expected: tuple[int, ...], source: str
) -> None:
  """Raises a `CheckpointError` if two shapes differ."""
  if tuple(found) != tuple(expected):
    raise errors.CheckpointError(
      f'{what} has shape {list(found)}, and should have {list(expected)} by '
      f'its {source}. Weights and configuration must be of one model.'
    )


def check_copy(
  tensor: np.ndarray, name: str, embedding: np.ndarray, directory: epath.Path
) -> None:
  """Raises a `CheckpointError` if a second embedding is not a copy.

  Args:
    tensor: the second embedding, `[vocab, embed]`.
    name: name of that tensor.
    embedding: the first embedding.
    directory: directory of the model, for the message.
  """
  if np.array_equal(tensor, embedding):
    return
  message = f'{directory}: {name} differs from {hf_names.SHARED}'
  if name == hf_names.LM_HEAD:
    raise errors.CheckpointError(
      f'{message}, though config.json ties the output layer to the embedding. '
      'If the model has an output layer of its own (T5 1.1, Flan, ByT5), set '
      'tie_word_embeddings to false in config.json.'
    )
  raise errors.CheckpointError(
    f'{message}; a T5 has one embedding, which encoder and decoder share. '
    'Models with several are not supported.'
  )
