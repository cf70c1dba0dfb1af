"""What the training stages do alike: prepare, describe and train.

A stage says what trains, by which loss, and how it is evaluated.
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


@runtime_checkable
class Made(Protocol):
  """What a stage makes of the model that it starts from: a `Run`, or roles."""

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
  """A stage that is about to train.

  Attributes:
    made: of the stage's `make`.
    start: what that was made of, without its weights.
    lora: adapters; None for full tuning.
    loop: lengths and periods.
    directory: MODEL_DIR.
    dataset: what is trained on.
    examples: of `dataset`.
    eval_examples: of the validation data.
    mesh: the mesh.
    accept_changes: whether the run may go on with other data, rewards or
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
  """Loads the model and the data, and makes of them what is trained.

  The loaded weights are let go of when it returns: what trains was copied, and
  what is frozen may have been cast.

  Args:
    make: makes it of the model, the training examples and the mesh.
    model_dir: where checkpoints and metrics go.
    dataset: training examples.
    eval_dataset: validation examples.
    loop: lengths and periods.
    lora: adapters; None for full tuning.
    initial_checkpoint_path: of the model to start from; None to draw weights.
    model: architecture; that of the initial checkpoint if None.
    vocabulary: tokenizer; that of the initial checkpoint if None.
    partitioner: how the model and batches are split among devices.
    base_checkpoint: where the base of an initial adapter lies now.
    initial_vit_path: a ViT that is put in front of the model.
    minibatches: updates of a step.
    rollout_parts: parts in which a batch is sampled.
    prompts_alone: whether of the training examples the prompts are taken.
    accept_changes: see `Prepared`.

  Raises:
    UserError: any input that cannot be used.
  """
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
  """Returns what the run's checkpoints will say of themselves.

  Args:
    prepared: the run.
    kind: `sft`, `reward` or `policy`.
    objective: see `RunMetadata`.
    settings: by name, what else decides what is learnt: optimizers, losses,
      and the like.
    policy: of a policy, the models that it is held against, and how.

  Raises:
    ConfigError: the processes read other data or have other settings; on every
      process.
  """
  start, dataset = prepared.start, prepared.dataset
  is_lora = prepared.lora is not None
  keeps_any = tuned_params.keeps_any(start.config, lora=is_lora)
  inputs = {
    'data': data_fingerprint.describe(prepared.examples),
    'eval_data': data_fingerprint.describe(prepared.eval_examples),
    'settings': run_settings.describe(settings),
  }
  # Or what is recorded would be true of process 0 alone.
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
  """Prepares the programs of a run that learns by one loss."""
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
  """Returns what decides which examples a step sees, and initial weights."""
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
  """Returns what gives the endless batches of this host, from a step on."""
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
  """Returns what gives the metrics of batches as such, between two steps."""
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
    prepared: the run, whose `trainable` is taken over.
    steps: its programs.
    metadata: of `describe`.
    evaluate: metrics of a state on the validation data.
    selection: what picks the best checkpoint.
    num_samples: examples that a row of a batch stands for.
    check: of `train_loop.train`.

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
