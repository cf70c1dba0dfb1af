"""The format of our own checkpoints, which record their metadata."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
from typing import Any

from etils import epath
from flax.core import meta
import jax
import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.core import errors
from perlhf_jax.core import versions
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import tuned_params
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import layer_layout
from perlhf_jax.training import step_files

# Fields of a policy's metadata that name other checkpoints, which a checkpoint
# that no run wrote does not need.
_OTHERS = ('reference', 'reward_checkpoints')


class Perlhf(format_lib.ModelFormat, format_lib.WritableFormat):
  """MODEL_DIR (its newest step), or one of its steps.

  Training does not use `write`, which makes a MODEL_DIR of one step. The step
  holds every weight, with adapters merged, and names no other checkpoint.
  """

  name = 'perlhf'
  title = 'a MODEL_DIR or one of its checkpoints/<step> folders'

  def recognises(self, path):
    """See `format`."""
    return step_files.find_step(path) is not None

  def settle(self, path):
    """See `format`; if a step is damaged, returns an earlier one."""
    return str(step_files.intact_step(path))

  def peek(self, path):
    """See `format`."""
    step = step_files.find_step(path)
    metadata = run_metadata.from_json(step_files.read_metadata(step), str(step))
    return loaded_model.LoadedModel(
      config=metadata.model,
      vocabulary=metadata.vocabulary,
      path=str(step),
      source=self.title,
      lora_config=metadata.lora,
      kind=metadata.kind,
      metadata=metadata,
      base=metadata.base,
    )

  def load(self, peeked, mesh):
    """See `format`."""
    metadata, config = peeked.metadata, peeked.config
    is_lora = metadata.tuning == run_metadata.LORA
    places = loaded_model.params_shardings(config, mesh)
    if peeked.base is not None:
      places, _ = tuned_params.split(places, config, lora=is_lora)
    trainable = step_files.read_trainable(
      epath.Path(peeked.path),
      # Only training needs the value model.
      role='policy' if peeked.kind == run_metadata.POLICY else None,
      params_shardings=places,
      expected=_expected(metadata),
    )
    params = trainable.get('params', {})
    trained = {'heads': trainable.get('heads', {})}
    if is_lora:
      lora = trainable['lora']
      trained['lora'] = layer_layout.to_layout(lora, scan_layers=False)
      trained['tuned'] = layer_layout.to_layout(params, scan_layers=False)
    else:
      trained['params'] = params
    return dataclasses.replace(peeked, **trained)

  def write(self, loaded, target, options):
    """See `format`; the folder may be remote."""
    options.check_new('Checkpoints of perlhf_jax')
    if options.dtype == 'bfloat16':
      raise errors.ConfigError(
        'Checkpoints of perlhf_jax are written in float32: leave out '
        '--dtype=bfloat16.'
      )
    check_empty(target)
    trained = {'params': jax.tree.map(_read, loaded.params)}
    write_step(target, loaded.step, trained, loaded.heads, _describe(loaded))


def check_empty(target: str) -> None:
  """Raises a CheckpointError unless a folder is new or empty."""
  with _written(target):
    model_dir = step_files.absolute(target)
    if model_dir.exists() and any(model_dir.iterdir()):
      raise errors.CheckpointError(
        f'{target} is not empty; give another folder.'
      )


def write_step(
  target: str,
  step: int,
  trained: Mapping[str, Any],
  heads: Mapping[str, Any],
  metadata: run_metadata.RunMetadata,
) -> None:
  """Writes a MODEL_DIR of one step, without optimizer state.

  Args:
    target: the folder, which may be remote.
    step: number of the step.
    trained: weights by collection, `params` or `lora`.
    heads: heads by name; empty if there are none.
    metadata: describes the weights.

  Raises:
    CheckpointError: the folder cannot be written.
  """
  trainable = {**trained, **({'heads': heads} if heads else {})}
  if metadata.kind == run_metadata.POLICY:
    trainable = {'policy': trainable}
  with _written(target):
    checkpoint_manager.write_weights(
      step_files.absolute(target),
      step,
      trainable,
      run_metadata.to_json(metadata),
    )


@contextlib.contextmanager
def _written(target: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise errors.CheckpointError(
      f'{target} cannot be written ({error}). Choose a folder that you may '
      'write to, on a disk with room for the weights; nothing was left there.'
    ) from error


def _expected(metadata: run_metadata.RunMetadata) -> dict[str, Any]:
  """Returns the shapes and dtypes of the weights that a step holds."""
  config, adapters = metadata.model, None
  is_lora = metadata.tuning == run_metadata.LORA
  if is_lora:
    adapters = lora_lib.resolve(
      metadata.lora, encoder_decoder.dense_module_paths(config)
    )
  model = encoder_decoder.make_model(config, adapters)

  def shapes(make):
    return meta.unbox(jax.eval_shape(lambda: make(jax.random.key(0))))

  expected = shapes(lambda rng: encoder_decoder.init_variables(model, rng))
  if metadata.base is not None:
    expected['params'], _ = tuned_params.split(
      expected['params'], config, lora=is_lora
    )
  if metadata.kind == run_metadata.REWARD:
    expected['heads'] = shapes(lambda rng: reward_model.init_heads(config, rng))
  return expected


def _read(leaf):
  """Reads a weight if it is still in its file."""
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _describe(loaded) -> run_metadata.RunMetadata:
  """Returns the metadata of a checkpoint that holds a whole model."""
  known = {
    'model': loaded.config,
    'lora': None,
    'vocabulary': loaded.vocabulary,
    'base': None,
    'versions': versions.describe(),
    'made_of': f'{loaded} ({os.fspath(loaded.path)})',
  }
  trained = loaded.metadata
  if trained is None:
    return run_metadata.RunMetadata(
      kind=loaded.kind,
      objective=None,
      tuning=None,
      task=None,
      task_feature_lengths=loaded.lengths,
      truncate_prompt=loaded.truncate_prompt,
      data_order={},
      **known,
    )
  is_lora = trained.tuning == run_metadata.LORA
  return dataclasses.replace(
    trained,
    tuning=run_metadata.MERGED if is_lora else trained.tuning,
    policy=own_policy(trained),
    **known,
  )


def own_policy(
  metadata: run_metadata.RunMetadata,
) -> Mapping[str, Any] | None:
  """Returns `metadata.policy` without the checkpoints that a run needs."""
  return metadata.policy and {
    name: value
    for name, value in metadata.policy.items()
    if name not in _OTHERS
  }
