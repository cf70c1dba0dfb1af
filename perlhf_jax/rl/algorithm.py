"""The interface of RL algorithms: two functions of arrays.

All arrays are `[batch, responses, length]`, or `[batch, responses]` for one
number per response. An algorithm never sees a model.
"""

from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.training import train_step

# β, the weight of the KL against the score.
KlBeta = Annotated[float, checks.Fraction]


class Episodes(NamedTuple):
  """The data of a rollout; constant during the updates made from it.

  A response whose mask is all false is padding of the batch and is ignored.

  Attributes:
    mask: bool `[batch, responses, length]`, true up to and including EOS.
    ended: bool `[batch, responses]`, false for a response without EOS: it was
      cut off at the length limit.
    logprobs: float32, log-probabilities under the policy that sampled, in nats.
    ref_logprobs: float32, log-probabilities under the reference.
    values: float32, the value before each token is chosen, computed by the
      value model of the rollout; None without a value model.
    scores: float32 `[batch, responses]`, already shaped (`rl/rewards.py`).
    max_length: the length limit, which may be larger than `length`: arrays are
      cut to the longest responses of the rollout.
  """

  mask: Bool[typing.Array, 'batch responses length']
  ended: Bool[typing.Array, 'batch responses']
  logprobs: Float[typing.Array, 'batch responses length']
  ref_logprobs: Float[typing.Array, 'batch responses length']
  values: Float[typing.Array, 'batch responses length'] | None
  scores: Float[typing.Array, 'batch responses']
  max_length: Int[typing.Array, ''] | int


class Targets(NamedTuple):
  """The targets of the updates from a rollout; 0 at masked positions.

  Attributes:
    advantages: float32 `[batch, responses, length]`.
    returns: the targets of the value model; None without a value model.
  """

  advantages: Float[typing.Array, 'batch responses length']
  returns: Float[typing.Array, 'batch responses length'] | None


class Outputs(NamedTuple):
  """The outputs of the trained models for the sampled tokens.

  Attributes:
    logprobs: float32 `[batch, responses, length]`, from the current policy.
    values: likewise, from the current value model; None without one.
  """

  logprobs: Float[typing.Array, 'batch responses length']
  values: Float[typing.Array, 'batch responses length'] | None


@runtime_checkable
class Algorithm(Protocol):
  """An algorithm; a frozen dataclass that gin builds."""

  @property
  def needs_value(self) -> bool:
    """Whether a value model is trained beside the policy."""
    ...

  @property
  def min_samples(self) -> int:
    """The smallest number of responses per prompt."""
    ...

  @property
  def epochs(self) -> int:
    """The number of passes over each rollout."""
    ...

  @property
  def minibatches(self) -> int:
    """The number of updates per pass; a prompt's responses stay together."""
    ...

  @property
  def kl_estimator(self) -> str:
    """'k1', 'k2' or 'k3': the KL estimate that is trained on and logged."""
    ...

  def targets(
    self, episodes: Episodes, kl_beta: Float[typing.Array, ''] | float
  ) -> Targets:
    """Computes the targets, once per rollout and over its whole batch."""
    ...

  def loss(
    self,
    outputs: Outputs,
    episodes: Episodes,
    targets: Targets,
    kl_beta: Float[typing.Array, ''] | float,
  ) -> train_step.LossOutput:
    """Computes the loss of a minibatch, as sums.

    The loss must be a policy loss plus a value loss: the models are
    differentiated one after the other (`rl/gradients.py`), so its gradient with
    respect to `outputs.values` must not depend on `outputs.logprobs`.
    """
    ...


# The members of `Algorithm`, for messages.
_MEMBERS = {
  'needs_value': 'True or False',
  'min_samples': 'a whole number',
  'epochs': 'a whole number',
  'minibatches': 'a whole number',
  'kl_estimator': "'k1', 'k2' or 'k3'",
  'targets': 'a function of (episodes, kl_beta)',
  'loss': 'a function of (outputs, episodes, targets, kl_beta)',
}


def token_kl(
  estimator: str, episodes: Episodes
) -> Float[jax.Array, 'batch responses length']:
  """Estimates the KL of every token of a rollout, 0 at masked positions."""
  return kl_lib.token_kl(
    estimator, episodes.logprobs, episodes.ref_logprobs, episodes.mask
  )


def has_tokens(
  mask: Bool[typing.Array, 'batch responses length'],
) -> Bool[jax.Array, 'batch responses']:
  """Marks the responses that are not padding of the batch."""
  return jnp.any(mask, axis=-1)


def without_padding(
  tree: Any, mask: Bool[typing.Array, 'batch responses length']
) -> Any:
  """Sets arrays to 0 wherever `mask` is false.

  Call it before any computation with the arrays. Then values at masked
  positions, NaN included, reach neither the loss nor its gradient.

  Args:
    tree: arrays with the shape of `mask`, or `[batch, responses]`; a scalar is
      kept.
    mask: `[batch, responses, length]`.
  """

  def clean(x):
    if jnp.ndim(x) == 0:
      return x
    kept = mask if x.ndim == mask.ndim else has_tokens(mask)
    return jnp.where(kept, x, jnp.zeros_like(x))

  return jax.tree.map(clean, tree)


def ratio_deviation(
  outputs: Outputs, episodes: Episodes
) -> Float[jax.Array, 'batch responses length']:
  """Computes |ratio - 1| of the current and the rollout policy, for metrics.

  It must be 0 in the first update of a rollout. Otherwise the two passes
  compute the log-probabilities differently.
  """
  ratio = kl_lib.probability_ratio(outputs.logprobs, episodes.logprobs)
  return jax.lax.stop_gradient(jnp.abs(ratio - 1.0))


def check_kl_beta(kl_beta: Any, is_adaptive: bool = False) -> None:
  """Checks β, the weight of the KL against the score.

  Args:
    kl_beta: the user's value.
    is_adaptive: whether a controller adapts β by multiplying it.

  Raises:
    ConfigError: β is outside [0, 1], or it is 0 and adaptive.
  """
  checks.check('KL_BETA', kl_beta, KlBeta)
  if is_adaptive and kl_beta == 0:
    raise errors.ConfigError(
      'KL_BETA is 0, and an adaptive controller only multiplies it, so it '
      'would stay 0. Set KL_BETA above 0, or the controller to None.'
    )


def check_algorithm(algorithm: Any, num_samples: Any) -> None:
  """Checks that an algorithm is complete and gets enough responses.

  Args:
    algorithm: the user's value of ALGORITHM.
    num_samples: the user's value of NUM_SAMPLES, responses per prompt.

  Raises:
    ConfigError: `algorithm` is not an algorithm, a member is missing or has the
      wrong type, or the algorithm needs more responses per prompt.
  """
  what = _name_of(algorithm)
  missing = [name for name in _MEMBERS if not hasattr(algorithm, name)]
  if isinstance(algorithm, type) or len(missing) == len(_MEMBERS):
    raise errors.ConfigError(
      f'ALGORITHM is {what}, which is not an algorithm. Give a file of gin/rl, '
      'such as --gin_file=gin/rl/ppo.gin; for one of your own write '
      'ALGORITHM = @my_module.MyAlgorithm() in a gin file, with the brackets.'
    )
  if missing:
    raise errors.ConfigError(
      f'The algorithm {what} has no {", ".join(missing)}. An algorithm has '
      + ', '.join(f'{name} ({kind})' for name, kind in _MEMBERS.items())
      + '; perlhf_jax/rl/reinforce.py is a short example.'
    )
  for name in 'targets', 'loss':
    if not callable(getattr(algorithm, name)):
      raise errors.ConfigError(f'{what}.{name} must be {_MEMBERS[name]}.')
  for name in 'min_samples', 'epochs', 'minibatches':
    value = getattr(algorithm, name)
    checks.check(f'{what}.{name}', value, Annotated[int, checks.AtLeastOne])
  checks.check(f'{what}.needs_value', algorithm.needs_value, bool)
  checks.check(
    f'{what}.kl_estimator',
    algorithm.kl_estimator,
    Annotated[str, checks.OneOf(*kl_lib.ESTIMATORS)],
  )
  checks.check('NUM_SAMPLES', num_samples, Annotated[int, checks.AtLeastOne])
  if num_samples < algorithm.min_samples:
    raise errors.ConfigError(
      f'NUM_SAMPLES is {num_samples}, but {what} compares the responses of a '
      'prompt with each other: set NUM_SAMPLES to at least '
      f'{algorithm.min_samples}, or use Reinforce, which needs only one.'
    )


def _name_of(algorithm: Any) -> str:
  """Returns the name of an algorithm, or of another value, for messages."""
  if isinstance(algorithm, type):
    return f'the class {algorithm.__name__}'
  if isinstance(algorithm, str | int | float | None):
    return repr(algorithm)
  return type(algorithm).__name__
