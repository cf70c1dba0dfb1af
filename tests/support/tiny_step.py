"""A MODEL_DIR of one step, with random weights, without training."""

import dataclasses

from etils import epath
import tiny_metadata
import tiny_models

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import step_digests

METADATA = dataclasses.replace(
  tiny_metadata.METADATA,
  kind='sft',
  objective='sft',
  tuning='full',
  lora=None,
  base=None,
  policy=None,
  module=None,
)


def write(folder, metadata=METADATA, trainable=None):
  """Writes step 0; returns its folder."""
  checkpoint_manager.write_weights(
    epath.Path(folder),
    0,
    {'params': tiny_models.params()} if trainable is None else trainable,
    run_metadata.to_json(metadata),
  )
  return folder / 'checkpoints/0'


def seal(step) -> None:
  """Writes digests of what a step holds now, as whoever changes one can."""
  step = epath.Path(step)
  (step / step_digests.FILE).unlink()
  step_digests.write(step, int(step.name))
