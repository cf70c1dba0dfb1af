"""A model set up for training: what trains, what is frozen, and its steps."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
import numpy as np

from perlhf_jax.core import tree_paths
from perlhf_jax.core import versions
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5
from perlhf_jax.models import tuned_params
from perlhf_jax.stages import model_dirs
from perlhf_jax.stages import model_variables
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import starts
from perlhf_jax.training import checkpoints
from perlhf_jax.training import compiled_step
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Run:
  """A model on the mesh, split into what is trained and what is frozen.

  Attributes:
    start: what it was made of.
    model: the backbone, with adapters for LoRA.
    mesh: the mesh.
    trainable: `{'lora'}`, `{'params'}` or both, and `'heads'`; of `params` what
      is trained in full.
    frozen: `{'params'}`, the others of them, or nothing.
    trainable_shardings: of `trainable`.
    trainable_fraction: trainable parameters over all.
  """

  start: starts.Start
  model: t5.T5
  mesh: partitioning.LogicalMesh
  trainable: Mapping[str, Any]
  frozen: Mapping[str, Any]
  trainable_shardings: Mapping[str, Any]
  trainable_fraction: float


def make_run(
  start: starts.Start,
  lora: lora_lib.LoraConfig | None,
  mesh: partitioning.LogicalMesh,
  seed: int,
  init_heads: Callable[[jax.Array], Mapping[str, Any]] | None = None,
  *,
  only_shapes: bool = False,
) -> Run:
  """Sets a model up: makes what is missing, freezes what does not train.

  Args:
    start: of `starts.resolve_start`.
    lora: None for full tuning.
    mesh: the mesh.
    seed: of everything drawn here.
    init_heads: returns boxed heads.
    only_shapes: whether to make `jax.ShapeDtypeStruct`s instead of arrays,
      for compiling; `start` then needs no backbone.
  """
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(
      lora, encoder_decoder.dense_module_paths(start.config)
    )
  model = encoder_decoder.make_model(start.config, adapters)
  params_rng, heads_rng = jax.random.split(jax.random.key(seed))

  def init():
    variables = dict(encoder_decoder.init_variables(model, params_rng))
    if init_heads is not None:
      variables['heads'] = init_heads(heads_rng)
    return variables

  if only_shapes:
    variables, shardings = model_variables.shapes(init, mesh)
  else:
    given = {}
    if start.backbone is not None:
      given['params'] = start.backbone.in_layout_of(start.config, mesh)
    variables, shardings = model_variables.place(init, given, mesh)

  def split(params):
    return tuned_params.split(params, start.config, lora=lora is not None)

  tuned, kept = split(variables.pop('params'))
  places, _ = split(shardings['params'])
  if tuned:
    has_backbone = start.backbone is not None
    variables['params'] = model_variables.copy(tuned) if has_backbone else tuned
    shardings['params'] = places
  frozen = {}
  if kept:
    frozen['params'] = frozen_dtypes.cast(kept, start.config)
  if adapters is not None and not only_shapes:
    logging.info(
      lora_lib.describe(adapters, variables['lora'], frozen['params'])
    )
  trained = tree_paths.count_parameters(variables)
  total = trained + tree_paths.count_parameters(frozen)
  logging.info(
    'Training %s of %s parameters (%.3f%%).',
    f'{trained:,}',
    f'{total:,}',
    100 * trained / total,
  )
  return Run(
    start=start,
    model=model,
    mesh=mesh,
    trainable=variables,
    frozen=frozen,
    trainable_shardings={n: shardings[n] for n in variables},
    trainable_fraction=trained / total,
  )


class Steps(NamedTuple):
  """The programs of a training run.

  Attributes:
    create: compiled, from `Run.trainable`, which it takes over, to the state
      before the first step.
    shardings: of the state.
    train: `(state, frozen, batch) -> (state, metrics)`.
  """

  create: Callable[[Any], train_state.TrainState]
  shardings: train_state.TrainState
  train: compiled_step.CompiledStep


def make_steps(
  run: Run,
  loss_fn: train_step.LossFn,
  optimizer: optimizers.Optimizer,
  *,
  train_steps: int,
  seed: int,
  accumulation_steps: int = 1,
) -> Steps:
  """Prepares the programs of a run; they compile when first called.

  Args:
    run: the model.
    loss_fn: the loss.
    optimizer: optimizer and schedule.
    train_steps: length of the schedule.
    seed: of dropout.
    accumulation_steps: parts in which a batch is differentiated.
  """
  transformation = optimizers.make_optimizer(optimizer, train_steps)
  shardings = train_state.state_shardings(
    run.trainable_shardings, run.trainable, transformation, run.mesh
  )
  create = jax.jit(
    lambda trainable: train_state.create(trainable, transformation),
    donate_argnums=0,  # Or `run` would hold a second copy to the end.
    out_shardings=shardings,
  )
  train = compiled_step.CompiledStep(
    train_step.make_train_step(
      train_step.gradients_of(loss_fn),
      transformation,
      optimizers.make_schedule(optimizer, train_steps),
      seed=seed,
      accumulation_steps=accumulation_steps,
    ),
    run.mesh,
    name='the training step',
    donate_argnums=(0,),
    out_shardings=(shardings, partitioning.replicated(run.mesh)),
  )
  return Steps(create, shardings, train)


def describe_run(
  run: Run,
  dataset: input_pipeline.DatasetConfig,
  examples: examples_lib.Examples,
  *,
  model_dir: epath.Path,
  kind: str,
  objective: str,
  seed: int,
) -> run_metadata.RunMetadata:
  """Returns what the run's checkpoints will say of themselves."""
  adapters, backbone = run.model.adapters, run.start.backbone
  return run_metadata.RunMetadata(
    kind=kind,
    objective=objective,
    tuning='full' if adapters is None else 'lora',
    model=run.model.config,
    lora=None if adapters is None else adapters.config,
    vocabulary=run.start.vocabulary,
    base=backbone.describe(model_dir) if run.frozen else None,
    task=dataset.mixture_or_task_name,
    task_feature_lengths=examples.feature_lengths(dataset.task_feature_lengths),
    truncate_prompt=dataset.truncate_prompt,
    data_order=describe_data(dataset, seed),
    module=dataset.module,
    versions=versions.describe(),
  )


def describe_data(
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


def train_batches(
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


def describe_batches(
  examples: examples_lib.Examples,
) -> Callable[[int, int], dict[str, float]]:
  """Returns what gives the metrics of batches as such, between two steps."""
  return lambda first, last: {'padding': examples.padding_share(first, last)}


def train(
  run: Run,
  loss_fn: train_step.LossFn,
  *,
  model_dir: model_dirs.ModelDir,
  metadata: run_metadata.RunMetadata,
  examples: examples_lib.Examples,
  optimizer: optimizers.Optimizer,
  loop: train_loop.LoopConfig,
  evaluate: Callable[[train_state.TrainState], Mapping[str, float]],
  selection: train_loop.Selection,
) -> train_state.TrainState:
  """Trains a run, from its newest checkpoint if MODEL_DIR has one.

  Raises:
    CheckpointError: MODEL_DIR holds another run.
  """
  manager = checkpoints.CheckpointManager(
    model_dir.path, run_metadata.to_json(metadata), keep_best=loop.keep_best
  )
  steps = make_steps(
    run,
    loss_fn,
    optimizer,
    train_steps=loop.train_steps,
    seed=loop.seed,
    accumulation_steps=loop.accumulation_steps,
  )
  if run.start.backbone is not None:
    run.start.backbone.release()
  state = model_dir.resume(
    manager, steps.create(run.trainable), steps.shardings, metadata
  )
  return train_loop.train(
    loop,
    model_dir=model_dir.path,
    manager=manager,
    step=steps.train,
    state=state,
    frozen=run.frozen,
    batches=train_batches(examples, run.mesh),
    batch_size=examples.batch_size,
    evaluate=evaluate,
    selection=selection,
    mesh=run.mesh,
    summary={'trainable_fraction': run.trainable_fraction},
    describe=describe_batches(examples),
  )
