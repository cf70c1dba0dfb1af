"""Preference tuning of a policy on pairs, without a reward model or sampling.

It takes the data of a pairwise reward model, so that a user can compare it with
the paper's pipeline. `objectives/preferences.py` has the losses.
"""

from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import masking
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import preferences
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.rl import shared_backbone
from perlhf_jax.runs import run as run_lib
from perlhf_jax.runs import stage
from perlhf_jax.runs import whole_run
from perlhf_jax.stages import implied_rewards
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import policy_start
from perlhf_jax.stages import reward_scoring
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

SELECTION = train_loop.Selection('loss', maximize=False)


def make_run(
  start: loaded_model.LoadedModel,
  lora: lora_lib.LoraConfig | None,
  mesh: partitioning.LogicalMesh,
  seed: int,
  *,
  only_shapes: bool = False,
) -> run_lib.Run:
  """Puts policy and reference on the mesh, as reinforcement learning does.

  Args:
    start: the initial model.
    lora: None for full tuning, where the reference is a frozen copy.
    mesh: the mesh.
    seed: seed of the adapters.
    only_shapes: see `run_lib.make_run`.

  Returns:
    A run with trainable `{'policy': …}` and frozen `{'params': …}`, which is
    the reference.
  """
  roles = roles_lib.make_roles(
    start, lora, mesh, seed, needs_value=False, only_shapes=only_shapes
  )
  return run_lib.Run(
    model=roles.models.policy,
    mesh=mesh,
    trainable=roles.trainable,
    frozen=shared_backbone.backbone_of(roles.frozen),
    trainable_shardings=roles.trainable_shardings,
    trainable_fraction=roles.trainable_fraction,
  )


def make_loss(
  policy: t5.T5,
  loss: str,
  beta: float,
  length_limit: int,
  label_smoothing: float = 0.0,
) -> train_step.LossFn:
  """Returns the loss of a batch, as sums over real pairs.

  Args:
    policy: the model of `make_run`.
    loss: a key of `preferences.LOSSES`.
    beta: β.
    length_limit: tokens to which responses were cut.
    label_smoothing: see `preferences.preference_loss`.
  """
  columns = _make_columns(policy, loss, beta, length_limit, label_smoothing)

  def total(trainable, frozen, batch, rng):
    del rng  # There is no dropout.
    found, mask = columns(trainable, frozen, batch), batch['example_mask']
    chosen, rejected = found['chosen_scores'], found['rejected_scores']
    means = {
      # The policy begins at its reference, where all pairs are ties.
      'pairwise_accuracy': 0.5 * (1.0 + jnp.sign(chosen - rejected)),
      'margin': chosen - rejected,
      'chosen_reward': chosen,
      'rejected_reward': rejected,
      'chosen_log_ratio': chosen / beta,
    }
    return train_step.LossOutput(
      loss_sum=masking.masked_sum(found['losses'], mask),
      weight_sum=jnp.sum(mask, dtype=jnp.float32),
      metric_sums={n: masking.masked_sum(x, mask) for n, x in means.items()},
    )

  return total


def _make_columns(policy, loss, beta, length_limit, label_smoothing=0.0):
  """Returns a function to the implied rewards and losses of pairs."""

  def columns(trainable, frozen, batch):
    chosen, rejected = (
      beta * log_ratio
      for log_ratio in implied_rewards.log_ratios(
        policy, trainable, frozen, batch, length_limit
      )
    )
    losses = preferences.preference_loss(
      loss,
      chosen,
      rejected,
      batch['margins'],
      beta=beta,
      label_smoothing=label_smoothing,
    )
    return {
      'chosen_scores': chosen,
      'rejected_scores': rejected,
      'losses': losses,
    }

  return columns


@whole_run.guarded
@checks.checked
def train_dpo(
  *,
  model_dir: str,
  dataset: input_pipeline.DatasetConfig,
  eval_dataset: input_pipeline.DatasetConfig,
  loop: train_loop.LoopConfig,
  optimizer: optimizers.Optimizer,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  loss: Annotated[str, checks.OneOf(*preferences.LOSSES)] = 'dpo',
  beta: Annotated[float, checks.Positive] = 0.1,
  label_smoothing: Annotated[float, checks.Range(least=0, below=0.5)] = 0.0,
  model: t5_config.T5Config | None = None,
  vocabulary: Any = None,
  base_checkpoint: str | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  accept_changes: bool = False,
) -> train_state.TrainState:
  """Tunes a policy on pairs in MODEL_DIR, and resumes a run found there.

  Args:
    model_dir: where checkpoints and metrics go.
    dataset: training pairs.
    eval_dataset: validation pairs; the best checkpoint has the least loss.
    loop: lengths and periods.
    optimizer: optimizer and schedule.
    lora: adapters; None for full tuning.
    initial_checkpoint_path: a MODEL_DIR, one of its steps, or a directory of
      any format that `perlhf inspect` knows; it is also the reference.
    loss: `dpo` or `ipo`.
    beta: β, the weight of the KL to the reference that the loss implies.
    label_smoothing: share of the pairs whose order is taken to be wrong, in the
      training loss.
    model: architecture; None for the initial checkpoint's.
    vocabulary: tokenizer; None for the initial checkpoint's.
    base_checkpoint: path of an initial adapter's base, if it is not where the
      adapter records it.
    partitioner: how to shard the model and batches over devices.
    accept_changes: whether an existing run may resume with other data or
      settings; its checkpoints record the changes.

  Returns:
    The last state.

  Raises:
    UserError: an input cannot be used; raised before training starts.
  """
  policy_start.check(
    model,
    lora,
    initial_checkpoint_path,
    with_dropout='the policy would differ from its reference from the start',
  )
  optimizers.check_adapted(optimizer, lora)

  def make(start, examples, mesh):
    if examples.kind is not kinds.PAIRWISE:
      raise errors.ConfigError(
        f'The task {dataset.mixture_or_task_name!r} is of the kind '
        f'{examples.kind.name!r}; preference tuning needs pairs (features '
        'inputs, chosen, rejected), as in tasks named *_rm.'
      )
    return make_run(start, lora, mesh, loop.seed)

  prepared = stage.prepare(
    make,
    model_dir=model_dir,
    dataset=dataset,
    eval_dataset=eval_dataset,
    loop=loop,
    lora=lora,
    initial_checkpoint_path=initial_checkpoint_path,
    base_checkpoint=base_checkpoint,
    model=model,
    vocabulary=vocabulary,
    partitioner=partitioner,
    accept_changes=accept_changes,
  )
  run = prepared.made

  def limit(config):
    return policy_evaluation.response_length(config.task_feature_lengths)

  scorer = reward_scoring.compile_scorer(
    _make_columns(run.model, loss, beta, limit(eval_dataset)),
    prepared.mesh,
    'evaluation',
  )

  def evaluate(state):
    columns = reward_scoring.collect(
      scorer,
      state.trainable,
      run.frozen,
      input_pipeline.eval_batches(
        prepared.eval_examples, eval_dataset.batch_size
      ),
    )
    chosen = float(np.mean(columns['chosen_scores']))
    return {
      **reward_scoring.reward_metrics(columns, kinds.PAIRWISE),
      'loss': float(np.mean(columns['losses'])),
      'chosen_reward': chosen,
      'rejected_reward': float(np.mean(columns['rejected_scores'])),
      'chosen_log_ratio': chosen / beta,
    }

  return stage.train(
    prepared,
    stage.make_steps(
      prepared,
      make_loss(run.model, loss, beta, limit(dataset), label_smoothing),
      optimizer,
    ),
    stage.describe(
      prepared,
      kind=run_metadata.POLICY,
      objective=loss,
      settings={
        'optimizer': optimizer,
        'beta': beta,
        'label_smoothing': label_smoothing,
      },
      policy={'reference': prepared.start.describe(prepared.directory.path)},
    ),
    evaluate=evaluate,
    selection=SELECTION,
  )
