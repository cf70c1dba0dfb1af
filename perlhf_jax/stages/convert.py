"""Writes a checkpoint in another format."""

from collections.abc import Sequence
import os
from typing import Annotated, Any

from absl import logging

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.checkpoints.formats import registry
from perlhf_jax.core import checks
from perlhf_jax.data import vocabularies
from perlhf_jax.training import partitioning

_BYTE = 'byte'


@checks.checked
def convert(
  *,
  source: str,
  target: str,
  to: str,
  base_checkpoint: str | None = None,
  base: str | None = None,
  vocabulary: str | None = None,
  extra_ids: Annotated[int, checks.Range(least=0)] = 0,
  dtype: Annotated[str, checks.OneOf('float32', 'bfloat16')] | None = None,
  overwrite: bool = False,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> loaded_model.LoadedModel:
  """Converts a checkpoint of any readable format to another format.

  Merges adapters into their base, unless the format keeps adapters, and
  measures how much merging changes logits. Models of other libraries' formats
  are read and written one array at a time.

  Args:
    source: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    target: a new or empty local folder (for `perlhf` also a remote one); at the
      end it is complete or does not exist.
    to: the format to write: perlhf (ours, whole, without a base), hf, peft or
      t5x.
    base_checkpoint: path of an adapter's base, if it is not where the adapter
      records it.
    base: the base that a PEFT directory records; by default its current path.
    vocabulary: the vocabulary of a T5X checkpoint, which has none: a
      SentencePiece model, or byte.
    extra_ids: number of sentinels after that vocabulary; T5 has 100.
    dtype: dtype of the weights, `float32` or `bfloat16`; by default `bfloat16`
      if all weights of the source are, else `float32`.
    overwrite: replace an existing model in the target.
    mesh_shape: devices as (data, fsdp, tensor), for models that do not fit on
      one device; one of the sizes may be -1.

  Returns:
    The written model, without its weights.

  Raises:
    UserError: the source cannot be read or has no such form, or the target
      cannot be written; the source is not changed.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  format_ = registry.writer(to)
  loaded = loading.open_for_writing(
    source,
    mesh,
    base_checkpoint,
    _make_vocabulary(vocabulary, extra_ids),
  )
  if not format_.keeps_adapters:
    loaded = loading.merged(loaded, mesh)
  format_.write(
    loaded,
    target,
    format_lib.WriteOptions(dtype=dtype, overwrite=overwrite, base=base),
  )
  logging.info('Wrote %s, %s, to %s.', loaded, to, os.path.abspath(target))
  return loaded.without_weights()


def _make_vocabulary(name: str | None, extra_ids: int) -> Any:
  if name is None:
    return None
  if name == _BYTE:
    return vocabularies.byte_vocabulary(extra_ids)
  return vocabularies.sentencepiece_vocabulary(name, extra_ids)
