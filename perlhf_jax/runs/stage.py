"""The shared parts of the training stages: prepare, describe and train.

A stage defines what to train, its loss, and its evaluation.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from absl import logging
import numpy as np

from perlhf_jax.checkpoints import initial
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints import run_settings
from perlhf_jax.core import sigterm
from perlhf_jax.core import strict_json
from perlhf_jax.core import versions
from perlhf_jax.data import data_fingerprint
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.models import tuned_params
from perlhf_jax.runs import model_dirs
from perlhf_jax.runs import run as run_lib
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import multihost
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_step
from perlhf_jax.training import wandb_writer


@runtime_checkable
class Made(Protocol):
  """The object that a stage makes from its initial model: a `Run`, or roles."""

  trainable: Mapping[str, Any]
  frozen: Mapping[str, Any]
  trainable_fraction: float


MadeT = TypeVar('MadeT', bound=Made)
Make = Callable[
  [loaded_model.LoadedModel, examples_lib.Examples, partitioning.LogicalMesh],
  MadeT,
]


@dataclasses.dataclass(frozen=True)
class Prepared(Generic[MadeT]):
  """A stage that is ready to train.

  Attributes:
    made: the result of the stage's `make`.
    start: the initial model, without its weights.
    lora: adapters; None for full tuning.
    loop: lengths and periods.
    directory: MODEL_DIR.
    dataset: the training data.
    examples: the examples of `dataset`.
    eval_examples: the validation examples.
    mesh: the mesh.
    accept_changes: whether the run may resume with other data, rewards or
      settings than it began with.
  """

  made: MadeT
  start: loaded_model.LoadedModel
  lora: lora_lib.LoraConfig | None
  loop: train_loop.LoopConfig
  directory: model_dirs.ModelDir
  dataset: input_pipeline.DatasetConfig
  examples: examples_lib.Examples
  eval_examples: examples_lib.Examples
  mesh: partitioning.LogicalMesh
  accept_changes: bool = False


def prepare(
  make: Make[MadeT],
  *,
  model_dir: str,
  dataset: input_pipeline.DatasetConfig,
  eval_dataset: input_pipeline.DatasetConfig,
  loop: train_loop.LoopConfig,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  model: t5_config.T5Config | None,
  vocabulary: Any,
  partitioner: partitioning.Partitioner,
  base_checkpoint: str | None = None,
  initial_vit_path: str | None = None,
  minibatches: int = 1,
  rollout_parts: int = 1,
  prompts_alone: bool = False,
  accept_changes: bool = False,
) -> Prepared[MadeT]:
  """Loads the model and the data, and makes the run or the roles.

  The loaded weights are freed when it returns: trainable weights are copies,
  and frozen weights may have been cast.

  Args:
    make: makes the run or the roles from the model, the training examples and
      the mesh.
    model_dir: where checkpoints and metrics go.
    dataset: training examples.
    eval_dataset: validation examples.
    loop: lengths and periods.
    lora: adapters; None for full tuning.
    initial_checkpoint_path: path of the initial model; None for random weights.
    model: architecture; None for the initial checkpoint's.
    vocabulary: tokenizer; None for the initial checkpoint's.
    partitioner: how to shard the model and batches over devices.
    base_checkpoint: current path of the base of an initial adapter.
    initial_vit_path: path of a ViT to add to the model.
    minibatches: updates per step.
    rollout_parts: number of parts of a batch that are sampled one after the
      other.
    prompts_alone: whether to use only the prompts of the training examples.
    accept_changes: see `Prepared`.

  Raises:
    UserError: an input cannot be used.
  """
  if loop.wandb:
    wandb_writer.load()
  with sigterm.kept():
    mesh = partitioner.make_mesh()
  partitioning.check_batch_size(
    dataset.batch_size, mesh, loop.accumulation_steps, minibatches
  )
  partitioning.check_batch_size(eval_dataset.batch_size, mesh)
  for batch_size in dataset.batch_size, eval_dataset.batch_size:
    partitioning.check_parts(batch_size, mesh, rollout_parts)
  directory = model_dirs.prepare(model_dir, loop.train_steps)
  dataset = directory.as_begun(dataset)
  start = initial.load_initial(
    *(model, vocabulary, lora, initial_checkpoint_path, mesh),
    base_checkpoint=base_checkpoint,
    initial_vit_path=initial_vit_path,
  )
  with multihost.together():
    examples = start.load_examples(dataset)
    eval_examples = start.load_examples(eval_dataset)
  if prompts_alone:
    examples = examples.prompts()
  return Prepared(
    made=make(start, examples, mesh),
    start=start.without_weights(),
    lora=lora,
    loop=loop,
    directory=directory,
    dataset=dataset,
    examples=examples,
    eval_examples=eval_examples,
    mesh=mesh,
    accept_changes=accept_changes,
  )


def describe(
  prepared: Prepared,
  *,
  kind: str,
  objective: str,
  settings: Mapping[str, Any],
  policy: Mapping[str, Any] | None = None,
) -> run_metadata.RunMetadata:
  """Returns the metadata of the run's checkpoints.

  Args:
    prepared: the run.
    kind: `sft`, `reward` or `policy`.
    objective: see `RunMetadata`.
    settings: further settings that affect learning, by name: optimizers, losses
      and others.
    policy: see `RunMetadata.policy`.

  Raises:
    ConfigError: processes differ in their data or settings; on every process.
  """
  start, dataset = prepared.start, prepared.dataset
  is_lora = prepared.lora is not None
  keeps_any = tuned_params.keeps_any(start.config, lora=is_lora)
  inputs = {
    'data': data_fingerprint.describe(prepared.examples),
    'eval_data': data_fingerprint.describe(prepared.eval_examples),
    'settings': run_settings.describe(settings),
  }
  # Else the metadata would describe only process 0.
  multihost.check_same(
    strict_json.dumps(inputs, indent=1), 'the data or the settings'
  )
  return run_metadata.RunMetadata(
    kind=kind,
    objective=objective,
    tuning=run_metadata.LORA if is_lora else run_metadata.FULL,
    model=start.config,
    lora=prepared.lora,
    vocabulary=start.vocabulary,
    base=start.describe(prepared.directory.path) if keeps_any else None,
    task=dataset.mixture_or_task_name,
    task_feature_lengths=prepared.examples.feature_lengths(
      dataset.task_feature_lengths
    ),
    truncate_prompt=dataset.truncate_prompt,
    data_order=_describe_data(dataset, prepared.loop.seed),
    policy=policy,
    module=dataset.module,
    versions=versions.describe(),
    **inputs,
  )


def make_steps(
  prepared: Prepared[run_lib.Run],
  loss_fn: train_step.LossFn,
  optimizer: optimizers.Optimizer,
) -> run_lib.Steps:
  """Prepares the programs of a run with one loss."""
  loop = prepared.loop
  return run_lib.make_steps(
    prepared.made,
    loss_fn,
    optimizer,
    train_steps=loop.train_steps,
    seed=loop.seed,
    accumulation_steps=loop.accumulation_steps,
  )


def _describe_data(
  dataset: input_pipeline.DatasetConfig, seed: int
) -> dict[str, Any]:
  """Returns the settings of the examples' order and of the initial weights."""
  by_length = dataset.length_buckets > 1
  return {
    'batch_size': dataset.batch_size,
    'data_seed': dataset.seed,
    'init_seed': seed,
    run_metadata.LENGTH_BUCKETS: dataset.length_buckets if by_length else 0,
    **({'length_window': dataset.length_window} if by_length else {}),
    **({} if dataset.part is None else {'part': list(dataset.part)}),
  }


def _train_batches(
  examples: examples_lib.Examples, mesh: partitioning.LogicalMesh
) -> Callable[[int], Iterator[Mapping[str, np.ndarray]]]:
  """Returns a function from a first step to this host's endless batches."""
  count, size = len(examples), examples.batch_size
  if size > count:
    logging.warning(
      'BATCH_SIZE %d is more than the %d examples of %s/%s: every step sees '
      'some of them more than once.',
      *(size, count, examples.name, examples.split),
    )
  logging.info(
    '%s/%s: %s', examples.name, examples.split, examples.describe_padding()
  )
  part = placement.host_rows(size, mesh)
  return lambda first: input_pipeline.train_iterator(examples, first, part)


def _describe_batches(
  examples: examples_lib.Examples,
) -> Callable[[int, int], dict[str, float]]:
  """Returns a function from two steps to metrics of the batches between."""
  return lambda first, last: {'padding': examples.padding_share(first, last)}


def train(
  prepared: Prepared,
  steps: run_lib.Steps,
  metadata: run_metadata.RunMetadata,
  *,
  evaluate: Callable[[train_loop.State], Mapping[str, float]],
  selection: train_loop.Selection,
  num_samples: int = 1,
  check: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Any:
  """Trains a run, from its newest checkpoint if MODEL_DIR has one.

  Args:
    prepared: the run; its `trainable` is donated.
    steps: its programs.
    metadata: the result of `describe`.
    evaluate: computes metrics of a state on the validation data.
    selection: how to choose the best checkpoint.
    num_samples: examples per row of a batch.
    check: see `train_loop.train`.

  Returns:
    The last state.

  Raises:
    CheckpointError: MODEL_DIR holds another run.
  """
  made, loop, examples = prepared.made, prepared.loop, prepared.examples
  path = prepared.directory.path
  metadata = prepared.directory.described(
    metadata, accept_changes=prepared.accept_changes
  )
  manager = checkpoint_manager.CheckpointManager(
    path,
    run_metadata.to_json(metadata),
    keep_best=loop.keep_best,
    keep_latest=loop.keep_latest,
  )
  state = prepared.directory.resume(
    manager, steps.create(made.trainable), steps.shardings
  )
  return train_loop.train(
    loop,
    model_dir=path,
    manager=manager,
    step=steps.train,
    state=state,
    frozen=made.frozen,
    batches=_train_batches(examples, prepared.mesh),
    batch_size=examples.batch_size * num_samples,
    evaluate=evaluate,
    selection=selection,
    mesh=prepared.mesh,
    summary={'trainable_fraction': made.trainable_fraction},
    check=check,
    still_ours=prepared.directory.check,
    describe=_describe_batches(examples),
  )
