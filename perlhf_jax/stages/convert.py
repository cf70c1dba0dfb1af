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
  """Writes a model in another format, from any format that is read.

  Adapters are merged into their base, and by how much that changes logits is
  measured, unless the format keeps adapters. A model of another library's
  format goes through memory one array at a time.

  Args:
    source: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    target: a local folder, of `perlhf` a remote one too, new or empty; it is
      complete at the end, or not there.
    to: the format to write: perlhf (ours, whole, without a base), hf, peft or
      t5x.
    base_checkpoint: where an adapter's base is, if not where the adapter says.
    base: what a PEFT directory will name as its base; by default where the base
      lies now.
    vocabulary: of a T5X checkpoint, which has none: a SentencePiece model, or
      byte.
    extra_ids: sentinels behind that vocabulary; T5 has 100.
    dtype: of the weights, `float32` or `bfloat16`; by default `bfloat16` where
      the source has all of them in it, and `float32` elsewhere.
    overwrite: replace a model that is in the target.
    mesh_shape: devices as (data, fsdp, tensor), for models that do not fit one
      of them; one of the sizes may be -1.

  Returns:
    What was written, without its weights.

  Raises:
    UserError: the source cannot be read, has no such form, or the target
      cannot be written; the source stays as it is.
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
