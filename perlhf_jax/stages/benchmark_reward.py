"""The training step of a reward model, built as `train_reward` builds it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from perlhf_jax.core import typing
from perlhf_jax.models import reward_model
from perlhf_jax.stages import backbones
from perlhf_jax.stages import benchmark_setting
from perlhf_jax.stages import benchmark_timing
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import setup_run
from perlhf_jax.stages import train_reward
from perlhf_jax.training import compiled_step
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


class RewardPrograms:
  """The training step of a pairwise reward model.

  Attributes:
    checkpoint: the untrained model, for `benchmark_policy`.
  """

  def __init__(
    self,
    start: setup_run.Start,
    setting: benchmark_setting.Setting,
    pairs: typing.Batch,
  ):
    """Prepares the program.

    Args:
      start: has a backbone.
      setting: how it is tuned.
      pairs: the batch, on the mesh.
    """
    mesh, optimizer = setting.mesh, setting.make_optimizer()
    run = setup_run.make_run(
      start,
      setting.lora,
      mesh,
      setting.seed,
      init_heads=lambda rng: reward_model.init_heads(start.config, rng),
    )
    shardings = train_state.state_shardings(
      run.trainable_shardings, run.trainable, optimizer, mesh
    )
    loss = train_reward.make_loss(
      reward_model.RewardModel(run.model), reward_scoring.PAIRWISE, 0.0
    )
    self.checkpoint = _untrained(start, setting, run.trainable)
    self._state = jax.jit(
      lambda trainable: train_state.create(trainable, optimizer),
      out_shardings=shardings,
    )(run.trainable)
    self._step = compiled_step.CompiledStep(
      train_step.make_train_step(
        loss, optimizer, setting.make_schedule(), seed=setting.seed
      ),
      mesh,
      name='the training step of the reward model',
      donate_argnums=(0,),
      out_shardings=(shardings, partitioning.replicated(mesh)),
    )
    self._frozen, self._pairs = run.frozen, pairs
    self._trainable_fraction = run.trainable_fraction

  def calls(self) -> Mapping[str, benchmark_timing.Call]:
    """Returns `reward_step`."""
    return {'reward_step': self._train}

  def figures(
    self, timings: Mapping[str, Sequence[benchmark_timing.Timing]]
  ) -> dict[str, Any]:
    """Returns time, memory and trained share of the step."""
    return {
      'reward_step': {
        'seconds': benchmark_timing.median_seconds(timings['reward_step']),
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
    name: jax.tree.map(partitioning.to_host, tree)
    for name, tree in trainable.items()
    if name != 'params'  # Those of full tuning begin as the backbone.
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
    heads=own['heads'],
    step_path='of the benchmark',
  )
