"""Supervised tuning: next-token cross-entropy on demonstrations."""

from typing import Annotated, Any

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import output_layer
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import losses
from perlhf_jax.runs import run as run_lib
from perlhf_jax.runs import stage
from perlhf_jax.runs import whole_run
from perlhf_jax.training import compiled_step
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step

SELECTION = train_loop.Selection('loss', maximize=False)


def make_loss(
  model: t5.T5, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> train_step.LossFn:
  """Returns the cross-entropy of a batch, as sums over target tokens."""

  def read(logits, targets):
    loss, *rest = losses.token_losses(logits, targets, label_smoothing, z_loss)
    return loss, rest

  def loss(trainable, frozen, batch, rng):
    variables = tree_paths.overlay(frozen, trainable)
    hidden = model.apply(
      variables,
      prompts.of_batch(batch),
      batch['decoder_input_tokens'],
      deterministic=rng is None,
      rngs=None if rng is None else {'dropout': rng},
      method='hidden',
    )
    loss, rest = output_layer.per_token(
      model, variables, hidden, read, batch['decoder_target_tokens']
    )
    sums = losses.weighted_sums(
      losses.TokenLosses(loss, *rest), batch['decoder_loss_weights']
    )
    return train_step.LossOutput(
      loss_sum=sums.loss_sum,
      weight_sum=sums.weight_sum,
      metric_sums={'token_accuracy': sums.correct_sum},
    )

  return loss


@whole_run.guarded
@checks.checked
def train_sft(
  *,
  model_dir: str,
  dataset: input_pipeline.DatasetConfig,
  eval_dataset: input_pipeline.DatasetConfig,
  loop: train_loop.LoopConfig,
  optimizer: optimizers.Optimizer,
  lora: lora_lib.LoraConfig | None = None,
  initial_checkpoint_path: str | None = None,
  model: t5_config.T5Config | None = None,
  vocabulary: Any = None,
  base_checkpoint: str | None = None,
  initial_vit_path: str | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  accept_changes: bool = False,
  label_smoothing: Annotated[float, checks.Range(least=0, below=1)] = 0.0,
  z_loss: Annotated[float, checks.NotNegative] = 0.0,
) -> train_state.TrainState:
  """Tunes a model on demonstrations in MODEL_DIR; resumes a run found there.

  Args:
    model_dir: where checkpoints and metrics go.
    dataset: training examples, features `inputs` and `targets`.
    eval_dataset: validation examples; the best checkpoint has the least loss.
    loop: lengths and periods.
    optimizer: optimizer and schedule.
    lora: adapters; None for full tuning.
    initial_checkpoint_path: a MODEL_DIR, one of its steps, or a directory of
      any format that `perlhf inspect` knows; None to train from random
      weights.
    model: architecture; None for the initial checkpoint's.
    vocabulary: tokenizer; None for the initial checkpoint's.
    base_checkpoint: path of an initial adapter's base, if it is not where the
      adapter records it.
    initial_vit_path: a Hugging Face SigLIP directory, whose ViT turns the
      initial checkpoint's T5 into a PaLI.
    partitioner: how to shard the model and batches over devices.
    accept_changes: whether an existing run may resume with other data, rewards
      or settings; its checkpoints record the changes.
    label_smoothing: label smoothing of the targets, in the training loss.
    z_loss: coefficient of log(Z)² in the training loss.

  Returns:
    The last state.

  Raises:
    UserError: an input cannot be used; raised before training starts.
  """
  optimizers.check_adapted(optimizer, lora)

  def make(start, examples, mesh):
    if examples.kind is not kinds.SFT:
      raise errors.ConfigError(
        f'The task {dataset.mixture_or_task_name!r} is of the kind '
        f'{examples.kind.name!r}; supervised tuning needs the features '
        'inputs and targets, as in tasks named *_sft.'
      )
    return run_lib.make_run(start, lora, mesh, loop.seed)

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
  run, mesh = prepared.made, prepared.mesh
  eval_loss = make_loss(run.model)
  eval_step = compiled_step.CompiledStep(
    lambda trainable, frozen, batch: eval_loss(trainable, frozen, batch, None),
    mesh,
    name='evaluation',
    out_shardings=partitioning.replicated(mesh),
  )

  def evaluate(state):
    totals = None
    for batch in input_pipeline.eval_batches(
      prepared.eval_examples, eval_dataset.batch_size
    ):
      sums = eval_step(
        state.trainable, run.frozen, placement.put_batch(batch, mesh)
      )
      flat = {
        'loss': float(sums.loss_sum),
        'weight': float(sums.weight_sum),
        **{name: float(value) for name, value in sums.metric_sums.items()},
      }
      totals = (
        flat if totals is None else {k: totals[k] + flat[k] for k in flat}
      )
    weight = totals.pop('weight')
    return {name: total / weight for name, total in totals.items()}

  return stage.train(
    prepared,
    stage.make_steps(
      prepared, make_loss(run.model, label_smoothing, z_loss), optimizer
    ),
    stage.describe(
      prepared,
      kind=run_metadata.SFT,
      objective=kinds.SFT.name,
      settings={
        'optimizer': optimizer,
        'label_smoothing': label_smoothing,
        'z_loss': z_loss,
      },
    ),
    evaluate=evaluate,
    selection=SELECTION,
  )
