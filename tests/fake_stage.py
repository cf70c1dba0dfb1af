"""A stage for the tests of the command line: it records how it was called."""

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
  model_dir: str,
  train_steps: Annotated[int, checks.AtLeastOne],
  model: Model | None = None,
  rank: int = 4,
  checkpoint: Any = None,
):
  calls.append(
    {
      'model_dir': model_dir,
      'train_steps': train_steps,
      'model': model,
      'rank': rank,
      'checkpoint': checkpoint,
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


def score(input_path, output_path, batch_size, base, seed, scale, heat):
  calls.append(
    {
      'input_path': input_path,
      'output_path': output_path,
      'batch_size': batch_size,
      'base': base,
      'seed': seed,
      'scale': scale,
      'heat': heat,
    }
  )


def never_configured(model_dir):
  del model_dir
