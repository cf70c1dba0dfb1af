"""Trains a reward model, pairwise or pointwise, with LoRA or in full.

Paper sections 2.1 and 4: adapters on every attention projection of a frozen
backbone, and a scalar head; the validation metric chooses the checkpoint.
"""

from typing import Annotated, Any

import jax.numpy as jnp

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import masking
from perlhf_jax.core import tree_paths
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import losses
from perlhf_jax.runs import run as run_lib
from perlhf_jax.runs import stage
from perlhf_jax.runs import whole_run
from perlhf_jax.stages import reward_scoring
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


def make_loss(
  model: reward_model.RewardModel, objective: kinds.Kind, centering: float
) -> train_step.LossFn:
  """Returns the loss of an objective, as sums over real examples.

  Args:
    model: the reward model.
    objective: `kinds.PAIRWISE` or `kinds.POINTWISE`.
    centering: coefficient of the centring term of the pairwise loss.
  """

  def pairwise(trainable, frozen, batch, rng):
    chosen, rejected = reward_scoring.pair_scores(
      model, tree_paths.overlay(frozen, trainable), batch, rng
    )
    per_example = losses.pairwise_loss(
      chosen, rejected, batch['margins'], centering
    )
    return _sums(
      per_example,
      batch['example_mask'],
      pairwise_accuracy=chosen > rejected,
      margin=chosen - rejected,
    )

  def pointwise(trainable, frozen, batch, rng):
    scores = reward_scoring.point_scores(
      model, tree_paths.overlay(frozen, trainable), batch, rng
    )
    labels = batch['labels']
    return _sums(
      losses.pointwise_loss(scores, labels),
      batch['example_mask'],
      accuracy=(scores > 0) == (labels > 0.5),
    )

  return {kinds.PAIRWISE: pairwise, kinds.POINTWISE: pointwise}[objective]


def _sums(per_example, mask, **metrics) -> train_step.LossOutput:
  return train_step.LossOutput(
    loss_sum=masking.masked_sum(per_example, mask),
    weight_sum=jnp.sum(mask, dtype=jnp.float32),
    metric_sums={
      name: masking.masked_sum(jnp.asarray(value, jnp.float32), mask)
      for name, value in metrics.items()
    },
  )


@whole_run.guarded
@checks.checked
def train_reward(
  *,
  model_dir: str,
  dataset: input_pipeline.DatasetConfig,
  eval_dataset: input_pipeline.DatasetConfig,
  loop: train_loop.LoopConfig,
  optimizer: optimizers.Optimizer,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  model: t5_config.T5Config | None = None,
  vocabulary: Any = None,
  base_checkpoint: str | None = None,
  initial_vit_path: str | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  accept_changes: bool = False,
  centering: Annotated[float, checks.NotNegative] = 0.0,
) -> train_state.TrainState:
  """Trains a reward model in MODEL_DIR, and resumes a run that it finds there.

  The task's features determine the objective: `chosen` and `rejected` for
  pairs, or `targets` and `label` for single judged responses.

  Args:
    model_dir: where checkpoints and metrics go.
    dataset: training examples.
    eval_dataset: validation examples, which choose the best checkpoint.
    loop: lengths and periods.
    optimizer: optimizer and schedule.
    lora: adapters; None for full tuning.
    initial_checkpoint_path: a MODEL_DIR, one of its steps, or a directory of
      any format that `perlhf inspect` knows; None to train from random
      weights (full tuning only).
    model: architecture; None for the initial checkpoint's.
    vocabulary: tokenizer; None for the initial checkpoint's.
    base_checkpoint: path of an initial adapter's base, if it is not where the
      adapter records it.
    initial_vit_path: a Hugging Face SigLIP directory, whose ViT turns the
      initial checkpoint's T5 into a PaLI.
    partitioner: how to shard the model and batches over devices.
    accept_changes: whether an existing run may resume with other data, rewards
      or settings; its checkpoints record the changes.
    centering: coefficient of the pairwise loss's centring term.

  Returns:
    The last state.

  Raises:
    UserError: an input cannot be used; raised before training starts.
  """
  optimizers.check_adapted(optimizer, lora)

  def make(start, examples, mesh):
    check_objective(examples, dataset.mixture_or_task_name)
    config = start.config
    return run_lib.make_run(
      start,
      lora,
      mesh,
      loop.seed,
      init_heads=lambda rng: reward_model.init_heads(config, rng),
    )

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
    initial_vit_path=initial_vit_path,
  )
  run, objective = prepared.made, prepared.examples.kind
  rewards = reward_model.RewardModel(run.model)
  scorer = reward_scoring.make_scorer(rewards, prepared.mesh, objective)

  def evaluate(state):
    columns = reward_scoring.collect(
      scorer,
      state.trainable,
      run.frozen,
      input_pipeline.eval_batches(
        prepared.eval_examples, eval_dataset.batch_size
      ),
    )
    return reward_scoring.reward_metrics(columns, objective)

  return stage.train(
    prepared,
    stage.make_steps(
      prepared, make_loss(rewards, objective, centering), optimizer
    ),
    stage.describe(
      prepared,
      kind=run_metadata.REWARD,
      objective=objective.name,
      settings={'optimizer': optimizer, 'centering': centering},
    ),
    evaluate=evaluate,
    selection=train_loop.Selection(objective.reward_metric),
  )


def check_objective(examples: examples_lib.Examples, task: str) -> kinds.Kind:
  """Returns the objective of a data set for reward models.

  Raises:
    ConfigError: the task has neither pairs nor judged responses.
  """
  if examples.kind.reward_metric is None:
    raise errors.ConfigError(
      f'The task {task!r} is of the kind {examples.kind.name!r}; a reward '
      'model needs pairs (features inputs, chosen, rejected) or judged '
      'responses (inputs, targets, label), as in tasks named *_rm.'
    )
  return examples.kind
