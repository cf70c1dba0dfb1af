"""What the training stages share: from a configuration to a run."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
from etils import epath
import flax
import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.core import tree_paths
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.stages import backbones
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import checkpoints
from perlhf_jax.training import compiled_step
from perlhf_jax.training import layer_layout
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run starts from, before anything is put on devices.

  Attributes:
    config: the model to train.
    vocabulary: the tokenizer.
    backbone: initial weights; None to draw them.
  """

  config: t5_config.T5Config
  vocabulary: Any
  backbone: backbones.Backbone | None


def resolve_start(
  model: t5_config.T5Config | None,
  vocabulary: Any,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
) -> Start:
  """Loads the initial checkpoint and holds it against the configuration.

  Raises:
    ConfigError: nothing to start from, or two models that differ.
  """
  if initial_checkpoint_path is None:
    if lora is not None:
      raise errors.ConfigError(
        'LoRA adapts a trained model, and INITIAL_CHECKPOINT_PATH is None. '
        'Give one, or train all weights with --gin_file=gin/lora/none.gin.'
      )
    if model is None or vocabulary is None:
      raise errors.ConfigError(
        'No model: give a gin/models/*.gin file to train from scratch, or '
        'INITIAL_CHECKPOINT_PATH.'
      )
    # A token beyond the embedding would be NaN from the first step on.
    if vocabulary.vocab_size > model.vocab_size:
      raise errors.ConfigError(
        f'VOCABULARY has {vocabulary.vocab_size} ids, but '
        f'T5Config.vocab_size is {model.vocab_size}; make it at least as large.'
      )
    return Start(model, vocabulary, None)
  backbone = backbones.load_backbone(initial_checkpoint_path)
  if model is None:
    model = backbone.config
  wanted = t5_config.architecture(model)
  given = t5_config.architecture(backbone.config)
  differing = [
    f'{name} {wanted[name]} (checkpoint {given[name]})'
    for name in wanted
    if wanted[name] != given[name]
  ]
  if differing:
    raise errors.ConfigError(
      f'The model file and {initial_checkpoint_path} are different models: '
      f'{", ".join(differing)}. Use the gin/models file of the checkpoint, or '
      'leave it out.'
    )
  if vocabulary is not None and vocabulary != backbone.vocabulary:
    raise errors.ConfigError(
      f'VOCABULARY is {vocabulary}, but {initial_checkpoint_path} was trained '
      f'with {backbone.vocabulary}. Leave VOCABULARY None to take the '
      "checkpoint's."
    )
  return Start(model, backbone.vocabulary, backbone)


@dataclasses.dataclass(frozen=True)
class Run:
  """A model on the mesh, split into what is trained and what is frozen.

  Attributes:
    start: what it was made of.
    model: the backbone, with adapters for LoRA.
    mesh: the mesh.
    trainable: `{'lora'}` or `{'params'}`, and `'heads'`.
    frozen: `{'params'}` or nothing.
    trainable_shardings: of `trainable`.
    trainable_fraction: trainable parameters over all.
  """

  start: Start
  model: t5.T5
  mesh: jax.sharding.Mesh
  trainable: Mapping[str, Any]
  frozen: Mapping[str, Any]
  trainable_shardings: Mapping[str, Any]
  trainable_fraction: float


def make_run(
  start: Start,
  lora: lora_lib.LoraConfig | None,
  mesh: jax.sharding.Mesh,
  seed: int,
  init_heads: Callable[[jax.Array], Mapping[str, Any]] | None = None,
) -> Run:
  """Initialises what is missing and puts everything on the mesh.

  Args:
    start: of `resolve_start`.
    lora: None for full tuning.
    mesh: the mesh.
    seed: of everything drawn here.
    init_heads: returns boxed heads.
  """
  adapters = None
  if lora is not None:
    adapters = lora_lib.resolve(lora, t5.dense_module_paths(start.config))
  model = t5.T5(start.config, adapters)
  params_rng, heads_rng = jax.random.split(jax.random.key(seed))

  def init():
    variables = dict(t5.init_variables(model, params_rng))
    if init_heads is not None:
      variables['heads'] = init_heads(heads_rng)
    return variables

  given = {}
  if start.backbone is not None:
    given['params'] = layer_layout.to_layout(
      start.backbone.params, start.config.scan_layers
    )
  variables, shardings = place(init, given, mesh)
  frozen_names = {'params'} if lora is not None else set()
  frozen = {n: v for n, v in variables.items() if n in frozen_names}
  trainable = {n: v for n, v in variables.items() if n not in frozen_names}
  if adapters is not None:
    logging.info(
      lora_lib.describe(adapters, variables['lora'], variables['params'])
    )
  trained = tree_paths.count_parameters(trainable)
  total = tree_paths.count_parameters(variables)
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
    trainable=trainable,
    frozen=frozen,
    trainable_shardings={n: shardings[n] for n in trainable},
    trainable_fraction=trained / total,
  )


def place(
  init: Callable[[], Mapping[str, Any]],
  given: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Puts variables on the mesh, initialising those that are not given.

  Args:
    init: returns all variables, boxed, by name.
    given: some of them, on the host.
    mesh: the mesh.

  Returns:
    The variables, and their shardings.
  """
  shardings = partitioning.shardings_of(jax.eval_shape(init), mesh)
  drawn = {name: s for name, s in shardings.items() if name not in given}

  def init_drawn():
    # What is given is not computed: the compiler drops it.
    variables = flax.core.meta.unbox(init())
    return {name: variables[name] for name in drawn}

  variables = jax.jit(init_drawn, out_shardings=drawn)() if drawn else {}
  for name, tree in given.items():
    # What is put from a device (merged or stacked weights) may share its
    # memory with what was put before, and be gone when that is donated.
    tree = jax.tree.map(np.asarray, tree)
    variables[name] = jax.device_put(tree, shardings[name])
  return variables, shardings


def resume(
  manager: checkpoints.CheckpointManager,
  state: Any,
  shardings: Any,
  fields: Mapping[str, Any],
) -> Any:
  """Returns the newest state of MODEL_DIR, or `state` if it has none.

  Raises:
    CheckpointError: MODEL_DIR holds another run.
  """
  latest = manager.latest_step()
  if latest is None:
    return state
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    shardings,
  )
  state = manager.restore(latest, abstract, check=fields)
  logging.info('Going on from step %d.', latest)
  return state


def write_config(model_dir: epath.Path) -> None:
  """Writes the gin configuration to MODEL_DIR/config.gin."""
  if jax.process_index() == 0:
    (model_dir / 'config.gin').write_text(operative_config.config_text())


def describe_run(
  run: Run,
  dataset: input_pipeline.DatasetConfig,
  *,
  kind: str,
  objective: str,
  seed: int,
) -> run_metadata.RunMetadata:
  """Returns what the run's checkpoints will say of themselves."""
  adapters, backbone = run.model.adapters, run.start.backbone
  base = None
  if adapters is not None:
    base = {
      'path': absolute(backbone.path),
      'fingerprint': backbone.fingerprint,
    }
  return run_metadata.RunMetadata(
    kind=kind,
    objective=objective,
    tuning='full' if adapters is None else 'lora',
    model=run.model.config,
    lora=None if adapters is None else adapters.config,
    vocabulary=run.start.vocabulary,
    base=base,
    task=dataset.mixture_or_task_name,
    task_feature_lengths=dataset.task_feature_lengths,
    truncate_prompt=dataset.truncate_prompt,
    data_order={
      'batch_size': dataset.batch_size,
      'data_seed': dataset.seed,
      'init_seed': seed,
      **({} if dataset.part is None else {'part': list(dataset.part)}),
    },
  )


def absolute(path: str) -> str:
  """Makes a path independent of the current folder."""
  return path if '://' in path else str(epath.Path(path).resolve())


def train(
  run: Run,
  loss_fn: train_step.LossFn,
  *,
  model_dir: epath.Path,
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
  fields = run_metadata.to_json(metadata)
  manager = checkpoints.CheckpointManager(
    model_dir, fields, keep_best=loop.keep_best
  )
  transformation = optimizers.make_optimizer(optimizer, loop.train_steps)
  shardings = train_state.state_shardings(
    run.trainable_shardings, run.trainable, transformation, run.mesh
  )
  state = jax.jit(
    lambda trainable: train_state.create(trainable, transformation),
    donate_argnums=0,  # Or `run` would hold a second copy to the end.
    out_shardings=shardings,
  )(run.trainable)
  state = resume(manager, state, shardings, fields)
  write_config(model_dir)
  step = compiled_step.CompiledStep(
    train_step.make_train_step(
      loss_fn,
      transformation,
      optimizers.make_schedule(optimizer, loop.train_steps),
      seed=loop.seed,
      accumulation_steps=loop.accumulation_steps,
    ),
    run.mesh,
    name='the training step',
    donate_argnums=(0,),
    out_shardings=(shardings, partitioning.replicated(run.mesh)),
  )
  return train_loop.train(
    loop,
    model_dir=model_dir,
    manager=manager,
    step=step,
    state=state,
    frozen=run.frozen,
    batches=lambda first: input_pipeline.train_iterator(
      examples, first, jax.process_index(), jax.process_count()
    ),
    batch_size=metadata.data_order['batch_size'],
    evaluate=evaluate,
    selection=selection,
    mesh=run.mesh,
    summary={'trainable_fraction': run.trainable_fraction},
  )
