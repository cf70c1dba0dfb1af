"""A stage for the tests of the command line: it records how it was called."""

from collections.abc import Sequence
from typing import Annotated, Any

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config

calls = []


class Model:
  def __init__(self, width: int, depth: int = 2):
    self.width = width
    self.depth = depth


def train(
  *,
  model_dir: str,
  train_steps: Annotated[int, checks.AtLeastOne],
  model: Model | None = None,
  rank: int = 4,
  checkpoint: str | None = None,
  extra: Any = None,
):
  """Trains.

  Args:
    checkpoint: where from.
  """
  calls.append(
    {
      'model_dir': model_dir,
      'train_steps': train_steps,
      'model': model,
      'rank': rank,
      'checkpoint': checkpoint,
      'extra': extra,
      'config': operative_config.config_text(),
    }
  )
  if model_dir == 'unwritable':
    raise errors.ConfigError('cannot write to unwritable')
  if model_dir == 'preempted':
    raise errors.PreemptedError('stopped at step 3')
  if model_dir == 'interrupt':
    raise KeyboardInterrupt
  if model_dir == 'fault':
    raise ValueError('a fault of ours')


def score(
  *,
  input_path: str,
  output_path: str,
  batch_size: Annotated[int, checks.AtLeastOne] = 32,
  base: str | None = None,
  seed: Annotated[int, checks.NotNegative] = 0,
  scale: float | None = None,
  heat: Annotated[float, checks.NotNegative] = 1.0,
  mesh_shape: Sequence[int] = (-1, 1, 1),
  model: Model | None = None,
):
  """Scores.

  Args:
    input_path: what to read.
    output_path: what to write.
    batch_size: lines
      per step.
    base: its base.
    seed: of the dice.
    scale: how much.
    heat: how hot.
    mesh_shape: devices.
    model: cannot be told on a command line.

  Returns:
    seed: nothing of the kind.
  """
  del model
  calls.append(
    {
      'input_path': input_path,
      'output_path': output_path,
      'batch_size': batch_size,
      'base': base,
      'seed': seed,
      'scale': scale,
      'heat': heat,
      'mesh_shape': mesh_shape,
    }
  )
