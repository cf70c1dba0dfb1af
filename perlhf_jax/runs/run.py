"""A model set up for training: trainable and frozen variables, and steps."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from absl import logging
import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import tree_paths
from perlhf_jax.models import dora
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import frozen_dtypes
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5
from perlhf_jax.models import tuned_params
from perlhf_jax.training import compiled_step
from perlhf_jax.training import model_variables
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import train_loop
from perlhf_jax.training import train_state
from perlhf_jax.training import train_step


@dataclasses.dataclass(frozen=True)
class Run:
  """A model on the mesh, split into trainable and frozen variables.

  Attributes:
    model: the backbone, with adapters for LoRA.
    mesh: the mesh.
    trainable: `{'lora'}`, `{'params'}` or both, and `'heads'`; `params` holds
      the parameters that are trained in full.
    frozen: `{'params'}` with the other parameters, or empty.
    trainable_shardings: the shardings of `trainable`.
    trainable_fraction: trainable parameters over all parameters.
  """

  model: t5.T5
  mesh: partitioning.LogicalMesh
  trainable: Mapping[str, Any]
  frozen: Mapping[str, Any]
  trainable_shardings: Mapping[str, Any]
  trainable_fraction: float


def make_run(
  start: loaded_model.LoadedModel,
  lora: lora_lib.LoraConfig | None,
  mesh: partitioning.LogicalMesh,
  seed: int,
  init_heads: Callable[[jax.Array], Mapping[str, Any]] | None = None,
  *,
  only_shapes: bool = False,
) -> Run:
  """Initialises missing weights, and splits a model into trainable and frozen.

  Args:
    start: the result of `initial.load_initial`; the run does not keep it.
    lora: None for full tuning.
    mesh: the mesh.
    seed: seed of the weights that are initialised.
    init_heads: returns boxed heads.
    only_shapes: whether to make `jax.ShapeDtypeStruct`s instead of arrays, for
      compiling; then `start` needs no weights.
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
    if start.params is not None:
      given['params'] = start.params
    variables, shardings = model_variables.place(init, given, mesh)

  def split(params):
    return tuned_params.split(params, start.config, lora=lora is not None)

  tuned, kept = split(variables.pop('params'))
  places, _ = split(shardings['params'])
  if tuned:
    is_given = start.params is not None
    variables['params'] = model_variables.copy(tuned) if is_given else tuned
    shardings['params'] = places
  frozen = {}
  if kept:
    frozen['params'] = frozen_dtypes.cast(kept, start.config)
  if adapters is not None and not only_shapes:
    variables['lora'] = dora.with_first_magnitudes(
      variables['lora'],
      tree_paths.overlay(frozen, variables)['params'],
      shardings['lora'],
    )
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
    model=model,
    mesh=mesh,
    trainable=variables,
    frozen=frozen,
    trainable_shardings={n: shardings[n] for n in variables},
    trainable_fraction=trained / total,
  )


class Steps(NamedTuple):
  """The programs of a training run, of one model or of several roles.

  Attributes:
    create: jitted function from the trainable variables, which it donates, to
      the state before the first step.
    shardings: the shardings of the state.
    train: `(state, frozen, batch) -> (state, metrics)`.
  """

  create: Callable[[Any], train_loop.State]
  shardings: train_loop.State
  train: train_loop.Step


def make_steps(
  run: Run,
  loss_fn: train_step.LossFn,
  optimizer: optimizers.Optimizer,
  *,
  train_steps: int,
  seed: int,
  accumulation_steps: int = 1,
) -> Steps:
  """Prepares the programs of a run; each compiles at its first call.

  Args:
    run: the model.
    loss_fn: the loss.
    optimizer: optimizer and schedule.
    train_steps: length of the schedule.
    seed: seed of dropout.
    accumulation_steps: number of parts of a batch that are differentiated one
      after the other.
  """
  transformation = optimizers.make_optimizer(optimizer, train_steps)
  shardings = train_state.state_shardings(
    run.trainable_shardings, run.trainable, transformation, run.mesh
  )
  create = jax.jit(
    lambda trainable: train_state.create(trainable, transformation),
    donate_argnums=0,  # Else `run` would keep a second copy.
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
