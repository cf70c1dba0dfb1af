"""Averages the weights of models that were trained from the same base.

The average of reward models is more robust than one of them, and costs no more
than one (WARM, arXiv:2401.12187). The mean of low-rank updates `A·B` is not the
product of the mean `A` and the mean `B`. So adapters are stacked side by side
instead: n adapters of rank r become one of rank n·r, whose update is exactly
the mean.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import tuned_params
from perlhf_jax.training import partitioning

# Parts whose mean is taken leaf by leaf.
_PLAIN = ('tuned', 'heads')


def check(models: Sequence[loaded_model.LoadedModel]) -> None:
  """Checks that models can be averaged.

  Args:
    models: models, with or without weights.

  Raises:
    ConfigError: there are fewer than two models.
    CheckpointError: a model is no MODEL_DIR, has DoRA adapters, or differs from
      the first in its kind, architecture, image size, tuning, objective,
      trained parts, vocabulary, base or adapted layers.
  """
  if len(models) < 2:
    raise errors.ConfigError('An average needs at least two checkpoints.')
  first = models[0]
  for model in models:
    if model.metadata is None:
      raise errors.CheckpointError(
        f'{model.path} is {model}. Only a MODEL_DIR, or one of its steps, can '
        'be averaged.'
      )
    for what, get in _SAME.items():
      if get(model) != get(first):
        raise errors.CheckpointError(
          f'{first.path} and {model.path} differ in {what}. Average '
          'checkpoints that were trained from the same base in the same way; '
          'their ranks, seeds and data may differ.'
        )
  for model in models:
    if model.lora_config is not None and model.lora_config.dora:
      raise errors.CheckpointError(
        f'{model.path} has DoRA adapters (LoraConfig.dora), whose mean is not '
        'the mean of the weights, because each is normalised. All of these '
        'were trained from one base, so merge each (perlhf convert '
        '--to=perlhf), and average those. Merged models do not tell their '
        'base, so average no others with them.'
      )


def average(
  models: Iterable[loaded_model.LoadedModel], mesh: partitioning.LogicalMesh
) -> loaded_model.LoadedModel:
  """Returns the mean of models that `check` accepts.

  Args:
    models: models with weights, one at a time; adapters may share `params`.
    mesh: where their weights are.

  Returns:
    The first model with the mean of the weights, in float32. The rank of its
    adapters is the sum of the ranks.
  """
  models = iter(models)
  mean = next(models)
  stacked = list(_adapters(mean))
  for count, model in enumerate(models, start=2):
    parts = {
      name: _moved(getattr(mean, name), getattr(model, name), count)
      for name in _PLAIN
    }
    if mean.lora is None:
      parts['params'] = _moved(
        mean.params, model.in_layout_of(mean.config, mesh), count
      )
    stacked += _adapters(model)
    mean = dataclasses.replace(mean, **parts)
  if mean.lora is None:
    return mean
  config = dataclasses.replace(
    mean.lora_config,
    rank=sum(config.rank for config, _ in stacked),
    alpha=None,
    rs_lora=False,
  )
  return dataclasses.replace(mean, lora=_stack(stacked), lora_config=config)


def _adapters(
  model: loaded_model.LoadedModel,
) -> Iterator[tuple[lora_lib.LoraConfig, Mapping[str, Any]]]:
  if model.lora is not None:
    yield model.lora_config, tree_paths.flatten(model.lora)


def _moved(mean, new, count: int):
  """Returns the mean of `count` trees from the mean of the others and the last.

  Equal leaves stay as they are, to the bit.
  """
  return jax.tree.map(lambda m, x: m + (x - m) / count, mean, new)


def _stack(
  adapters: Sequence[tuple[lora_lib.LoraConfig, Mapping[str, Any]]],
) -> dict[str, Any]:
  """Returns one adapter of scale 1, whose update is the mean of the updates."""
  stacked = {}
  for path in adapters[0][1]:
    if path.endswith('lora_a'):
      leaves = [lora[path] for _, lora in adapters]
      stacked[path] = jnp.concatenate(leaves, axis=-1)
    else:
      leaves = [
        lora[path] * (config.scale / len(adapters)) for config, lora in adapters
      ]
      stacked[path] = jnp.concatenate(leaves, axis=-2)
  return tree_paths.unflatten(stacked)


def _base(model: loaded_model.LoadedModel) -> str | None:
  """Identifies the base that is frozen as a whole or in part."""
  if model.base is None:
    return None
  return model.base.get('fingerprint', model.base['path'])


def _adapted(model: loaded_model.LoadedModel) -> Sequence[str] | None:
  config = model.lora_config
  return None if config is None else config.target_modules


def _tuned(model: loaded_model.LoadedModel) -> dict[str, bool]:
  is_lora = model.lora_config is not None
  return tuned_params.tuned_parts(model.trained_config, lora=is_lora)


_SAME = {
  'kind': lambda model: model.kind,
  'architecture': lambda model: model.config.architecture(),
  'image size': lambda model: model.config.image_size,
  'tuning': lambda model: model.metadata.tuning,
  'objective': lambda model: model.metadata.objective,
  'trained parts (TRAIN_VIT, PaliConfig.train_projection)': _tuned,
  'base': _base,
  'vocabulary': lambda model: vocabularies.to_dict(model.vocabulary),
  'adapted layers (LoraConfig.target_modules)': _adapted,
}
