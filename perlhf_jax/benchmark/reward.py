"""The training step of a reward model, built as `train_reward` builds it."""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.benchmark import batch_sizes
from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.data import kinds
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import reward_model
from perlhf_jax.runs import run as run_lib
from perlhf_jax.stages import train_reward
from perlhf_jax.training import placement


class RewardPrograms:
  """The training step of a reward model."""

  def __init__(
    self,
    start: loaded_model.LoadedModel,
    setting: setting_lib.Setting,
    objective: kinds.Kind,
    batch: typing.Batch,
  ):
    """Prepares the program.

    Args:
      start: the initial model, with weights.
      setting: how to tune it.
      objective: `kinds.PAIRWISE` or `kinds.POINTWISE`.
      batch: a batch on the host.
    """
    self._run = run = run_lib.make_run(
      start,
      setting.lora,
      setting.mesh,
      setting.seed,
      init_heads=lambda rng: reward_model.init_heads(start.config, rng),
    )
    self._model = reward_model.RewardModel(run.model)
    steps = run_lib.make_steps(
      run,
      train_reward.make_loss(self._model, objective, 0.0),
      setting.optimizer,
      train_steps=setting_lib.TRAIN_STEPS,
      seed=setting.seed,
    )
    self._state, self._step = steps.create(run.trainable), steps.train
    self._is_lora = setting.lora is not None
    self._sizes = len(batch['example_mask']), *batch_sizes.count(batch)
    self._batch = placement.put_batch(batch, setting.mesh)

  @property
  def memory_bytes(self) -> int:
    """The memory per device of the largest program so far."""
    return self._step.memory_bytes

  def trained(self) -> tuple[reward_model.RewardModel, Mapping[str, Any]]:
    """Returns the current model, to score with.

    Returns:
      The model, and its own variables without the frozen backbone. With full
      tuning these include a backbone.
    """
    variables = self._state.trainable
    if not self._is_lora:
      params = tree_paths.overlay(self._run.frozen, variables)['params']
      config = self._run.model.config
      variables = {**variables, 'params': frozen_dtypes.cast(params, config)}
    return self._model, variables

  def train(self, batch: typing.Batch) -> Mapping[str, Any]:
    """Makes a step with a batch on the mesh; returns its metrics."""
    self._state, metrics = self._step(self._state, self._run.frozen, batch)
    return metrics

  def calls(self) -> Mapping[str, timing.Call]:
    """Returns `reward_step`."""
    return {'reward_step': lambda repeat: self.train(self._batch)}

  def figures(self, measured: Mapping[str, timing.Measured]) -> dict[str, Any]:
    """Returns time, memory and trained share of the step."""
    step = measured['reward_step']
    return {
      'reward_step': {
        'seconds': step.seconds,
        **batch_sizes.rates(*self._sizes, step.seconds),
        **step.rates(),
        'step_memory_bytes': self.memory_bytes,
        'trainable_fraction': self._run.trainable_fraction,
      }
    }
