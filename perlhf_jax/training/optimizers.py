"""optax optimizers and schedules, as gin builds them."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import tuned_params
from perlhf_jax.training import layer_layout

# Adafactor's constants in optax and T5X.
_MIN_FACTORED = 128
_MAX_UPDATE_RMS = 1.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer, its schedule and its clipping.

  Attributes:
    name: `adafactor` (the T5 default: factored second moments of large
      matrices, no first moment) or `adamw`.
    learning_rate: peak learning rate.
    schedule: learning rate after the warm-up: `constant`; `linear` or `cosine`
      decay to `final_fraction` of the peak at the end of training (the last
      step is still above it); `rsqrt`, peak * sqrt(warmup_steps / step).
    warmup_steps: steps in which the rate grows linearly to the peak, from
      peak / warmup_steps at the first step.
    final_fraction: see `schedule`.
    clip_norm: global norm to which the gradient of the trainable leaves is
      clipped; None for no clipping.
    weight_decay: decoupled decay per step, times the learning rate.
    multiply_by_parameter_scale: whether Adafactor scales its updates by the RMS
      of each parameter, as T5X does. Only the pre-trained weights are scaled:
      adapters, heads and a PaLI's projection, which tuning adds
      (`tuned_params.is_added`), are not, since parameters that start at zero
      would hardly move.
    b1: AdamW's decay of the first moment.
    b2: AdamW's decay of the second moment.
    lora_b_ratio: learning rate of every `lora_b` over that of all other weights
      (LoRA+, arXiv:2402.12354, eq. 7); multiplies schedule and decoupled
      weight decay alike. It is here and not in `LoraConfig`, because it says
      how adapters learn, not what they compute: a checkpoint's adapters are
      the same whatever it was, and policy and value model may differ in it.
  """

  name: Annotated[str, checks.OneOf('adafactor', 'adamw')] = 'adafactor'
  learning_rate: Annotated[float, checks.NotNegative] = 1e-3
  schedule: Annotated[
    str, checks.OneOf('constant', 'linear', 'cosine', 'rsqrt')
  ] = 'constant'
  warmup_steps: Annotated[int, checks.NotNegative] = 0
  final_fraction: Annotated[float, checks.Fraction] = 0.0
  clip_norm: Annotated[float | None, checks.Positive] = 1.0
  weight_decay: Annotated[float, checks.NotNegative] = 0.0
  multiply_by_parameter_scale: bool = True
  b1: Annotated[float, checks.Range(least=0, below=1)] = 0.9
  b2: Annotated[float, checks.Range(least=0, below=1)] = 0.999
  lora_b_ratio: Annotated[float, checks.Positive] = 1.0

  def __post_init__(self):
    checks.check_fields(self)
    if self.schedule == 'rsqrt' and self.warmup_steps < 1:
      raise errors.ConfigError(
        "Optimizer.schedule 'rsqrt' decays from the end of the warm-up; set "
        'Optimizer.warmup_steps to at least 1.'
      )


def check_adapted(config: Optimizer, lora: lora_lib.LoraConfig | None) -> None:
  """Checks that there are adapters if their learning rate is set.

  Args:
    config: the optimizer of a model.
    lora: the model's adapters; None for full tuning.

  Raises:
    ConfigError: `lora_b_ratio` is not 1 under full tuning.
  """
  if lora is None and config.lora_b_ratio != 1:
    raise errors.ConfigError(
      f'Optimizer.lora_b_ratio is {config.lora_b_ratio:g}, but full tuning has '
      'no adapters. Set it to 1, or tune adapters only: give a file such as '
      "--gin_file=gin/lora/all_linear.gin, and TUNINGS = 'lora' to a command "
      'that has it.'
    )


def make_schedule(
  config: Optimizer, train_steps: int
) -> Callable[[typing.Array | int], jax.Array]:
  """Returns the learning rate as a function of the step, from 0."""
  peak, warmup = config.learning_rate, config.warmup_steps
  decay_steps = max(train_steps - warmup, 1)
  if config.schedule == 'linear':
    after = optax.linear_schedule(
      peak, peak * config.final_fraction, decay_steps
    )
  elif config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      peak, decay_steps, alpha=config.final_fraction
    )
  elif config.schedule == 'rsqrt':

    def after(step):
      # Also evaluated during the warm-up, where the step is below 0.
      return peak * jnp.sqrt(warmup / (jnp.maximum(step, 0) + warmup))

  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  # The warm-up starts above 0, so that the first step is not wasted.
  start = peak / warmup
  ramp = optax.linear_schedule(start, peak, max(warmup - 1, 1))
  return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
  config: Optimizer, train_steps: int
) -> optax.GradientTransformation:
  """Returns the gradient transformation of a configuration.

  Its `init` raises a ConfigError for weights that the configuration does not
  fit.
  """
  schedule = make_schedule(config, train_steps)
  if config.name == 'adafactor':
    update = _adafactor(schedule, config.multiply_by_parameter_scale)
    if config.weight_decay:
      # optax's own option does not multiply the decay by the learning rate.
      update = optax.chain(
        update,
        optax.add_decayed_weights(
          lambda step: -config.weight_decay * schedule(step)
        ),
      )
  else:
    update = optax.adamw(
      schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay
    )
  if config.lora_b_ratio != 1:
    update = _lora_plus(update, config)
  if config.clip_norm is None:
    return update
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _adafactor(
  schedule: Callable[[typing.Array | int], jax.Array], relative: bool
) -> optax.GradientTransformation:
  """`optax.adafactor` that treats each layer of a stack as its own array.

  So stacked and unrolled layers get the same updates, as in T5X: no mean is
  taken over the layer axis. Second moments need no change, because optax
  factors the two largest axes and the layer axis is smaller.
  """
  factored = optax.scale_by_factored_rms(min_dim_size_to_factor=_MIN_FACTORED)
  steps = [
    optax.GradientTransformation(_checked(factored.init), factored.update),
    _each_layer(optax.clip_by_block_rms(_MAX_UPDATE_RMS)),
  ]
  if relative:
    steps.append(
      _each_layer(
        optax.scale_by_param_block_rms(),
        lambda path: not tuned_params.is_added(path),
      )
    )
  return optax.chain(*steps, optax.scale_by_learning_rate(schedule))


def _lora_plus(
  optimizer: optax.GradientTransformation, config: Optimizer
) -> optax.GradientTransformation:
  """Multiplies the updates of each `lora_b`, weight decay included.

  The state is the optimizer's own: checkpoints are the same with and without.
  """

  def init(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    # optax also calls it with a placeholder without leaves.
    if paths and not any(is_b(path) for path, _ in paths):
      check_adapted(config, None)
    return optimizer.init(params)

  def update(updates, state, params=None):
    updates, state = optimizer.update(updates, state, params)
    scaled = jax.tree_util.tree_map_with_path(
      lambda path, x: x * config.lora_b_ratio if is_b(path) else x, updates
    )
    return scaled, state

  def is_b(path):
    return _name(path).split('/')[-1] == 'lora_b'

  return optax.GradientTransformation(init, update)


def _checked(init):
  """Refuses stacks so deep that optax would factor the layer axis."""

  def checked_init(params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      path = _name(path)
      if layer_layout.is_stacked(path) and leaf.shape[0] >= _MIN_FACTORED:
        raise errors.ConfigError(
          f'Adafactor takes stacks of fewer than {_MIN_FACTORED} layers; '
          f'{path} has {leaf.shape[0]}. Set scan_layers = False for the '
          "model, or Optimizer.name = 'adamw'."
        )
    return init(params)

  return checked_init


def _each_layer(
  stateless: optax.GradientTransformation,
  applies: Callable[[str], bool] = lambda path: True,
) -> optax.GradientTransformation:
  """Transforms each leaf, and each layer of a stacked leaf, separately."""

  def update(updates, state, params):
    def transform(update, param):
      return stateless.update(update, state, param)[0]

    def visit(path, update, param):
      path = _name(path)
      if not applies(path):
        return update
      if layer_layout.is_stacked(path):
        return jax.vmap(transform)(update, param)
      return transform(update, param)

    visited = jax.tree_util.tree_map_with_path(visit, updates, params)
    return visited, state

  return optax.GradientTransformation(stateless.init, update)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def by_name(
  optimizers: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
  """Gives each subtree of a dict its own optimizer, with its own clipping.

  The state is a dict of their states, so that each can be sharded like its
  subtree.
  """

  def init(params):
    return {name: o.init(params[name]) for name, o in optimizers.items()}

  def update(updates, state, params):
    new = {
      name: o.update(updates[name], state[name], params[name])
      for name, o in optimizers.items()
    }
    return {n: u for n, (u, _) in new.items()}, {
      n: s for n, (_, s) in new.items()
    }

  return optax.GradientTransformation(init, update)
