"""The training step of a reward model, built as `train_reward` builds it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.core import typing
from perlhf_jax.models import reward_model
from perlhf_jax.stages import backbones
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import setup_run
from perlhf_jax.stages import starts
from perlhf_jax.stages import train_reward
from perlhf_jax.training import placement


class RewardPrograms:
  """The training step of a pairwise reward model.

  Attributes:
    checkpoint: the untrained model, for the policy.
  """

  def __init__(
    self,
    start: starts.Start,
    setting: setting_lib.Setting,
    pairs: typing.Batch,
  ):
    """Prepares the program.

    Args:
      start: has a backbone.
      setting: how it is tuned.
      pairs: the batch, on the mesh.
    """
    run = setup_run.make_run(
      start,
      setting.lora,
      setting.mesh,
      setting.seed,
      init_heads=lambda rng: reward_model.init_heads(start.config, rng),
    )
    self.checkpoint = _untrained(start, setting, run.trainable)
    steps = setup_run.make_steps(
      run,
      train_reward.make_loss(
        reward_model.RewardModel(run.model), reward_scoring.PAIRWISE, 0.0
      ),
      setting.optimizer,
      train_steps=setting_lib.TRAIN_STEPS,
      seed=setting.seed,
    )
    self._state, self._step = steps.create(run.trainable), steps.train
    self._frozen, self._pairs = run.frozen, pairs
    self._trainable_fraction = run.trainable_fraction

  def calls(self) -> Mapping[str, timing.Call]:
    """Returns `reward_step`."""
    return {'reward_step': self._train}

  def figures(
    self, timings: Mapping[str, Sequence[timing.Timing]]
  ) -> dict[str, Any]:
    """Returns time, memory and trained share of the step."""
    return {
      'reward_step': {
        'seconds': timing.median_seconds(timings['reward_step']),
        'step_memory_bytes': self._step.memory_bytes,
        'trainable_fraction': self._trainable_fraction,
      }
    }

  def _train(self, repeat):
    del repeat
    self._state, metrics = self._step(self._state, self._frozen, self._pairs)
    return metrics


def _untrained(start, setting, trainable) -> backbones.Checkpoint:
  """Returns the checkpoint that the model would have at step 0."""
  own = {
    name: jax.tree.map(placement.to_host, tree)
    for name, tree in trainable.items()
    if name != 'params'  # What is tuned in full begins as the backbone.
  }
  metadata = run_metadata.RunMetadata(
    kind=run_metadata.REWARD,
    objective=reward_scoring.PAIRWISE,
    tuning='full' if setting.lora is None else 'lora',
    model=start.config,
    lora=setting.lora,
    vocabulary=start.vocabulary,
    base=None,
    task='none',
    task_feature_lengths={},
    truncate_prompt='keep_end',
    data_order={},
  )
  return backbones.Checkpoint(
    backbone=start.backbone,
    metadata=metadata,
    lora=own.get('lora'),
    tuned={},
    heads=own['heads'],
    step_path='of the benchmark',
  )
