"""Where rewards come from: reward models, Python functions, or both."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Annotated, Any

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.core import user_code
from perlhf_jax.data import feature_converters
from perlhf_jax.rl import reward_functions
from perlhf_jax.rl import rewards
from perlhf_jax.rl import scoring as scoring_lib
from perlhf_jax.training import partitioning

# (prompts, responses), two lists of strings -> one number per response. A judge
# may have a third parameter, `references`: a list of right answers per prompt.
RewardFunction = Callable[..., Sequence[float]]


@dataclasses.dataclass(frozen=True)
class RewardSources:
  """The reward: model_weight · reduce(models) + Σ weight · function.

  Attributes:
    checkpoints: path of a reward model, or several paths for an ensemble. A
      reward model that shares the policy's backbone only adds its adapters.
    reduce: `mean` of the models, or `min`, which is harder to exploit.
    model_weight: factor on the reduced score of the models.
    functions: `RewardFunction`s of the lists `prompts` and `responses`, in gin
      `(@my_module.my_reward,)`; a single function needs no tuple.
    function_weights: a factor for each function; 1 if empty.
    time_limit: seconds that a call of a function, or of a judge, may take; None
      for no limit.
  """

  checkpoints: str | Sequence[str] | None = ()
  reduce: rewards.Ensemble = 'mean'
  model_weight: float = 1.0
  functions: Any = ()
  function_weights: Sequence[float] = ()
  time_limit: Annotated[float | None, checks.Positive] = None

  def __post_init__(self):
    checks.check_fields(self)
    checkpoints = self.checkpoints or ()
    if isinstance(checkpoints, str):
      checkpoints = (checkpoints,)
    functions = self.functions or ()
    if not isinstance(functions, list | tuple):
      functions = (functions,)
    object.__setattr__(self, 'checkpoints', tuple(checkpoints))
    object.__setattr__(self, 'functions', tuple(functions))
    weights = self.function_weights or (1.0,) * len(self.functions)
    if len(weights) != len(self.functions):
      raise errors.ConfigError(
        f'RewardSources.function_weights has {len(weights)} numbers for '
        f'{len(self.functions)} function(s). Give one number per function of '
        'REWARD_FUNCTIONS, or leave function_weights out.'
      )
    object.__setattr__(self, 'function_weights', tuple(weights))
    for function in self.functions:
      if not callable(function):
        raise errors.ConfigError(
          f'RewardSources.functions has {function!r}, which cannot be called; '
          'in gin write (@my_module.my_reward,).'
        )
      if reward_functions.wants_references(function):
        raise errors.ConfigError(
          f'RewardSources.functions has {user_code.name_of(function)}, which '
          'takes references; only a JUDGE may read them, and no policy may be '
          'trained on them.'
        )
      _check_signature(function)

  def check_any(self) -> None:
    """Raises a ConfigError if there is neither a model nor a function."""
    if not self.checkpoints and not self.functions:
      raise errors.ConfigError(
        'The policy has no reward: set REWARD_CHECKPOINT to a MODEL_DIR of '
        'perlhf train_reward (or to several), or REWARD_FUNCTIONS.'
      )

  def scoring(
    self, vocabulary: Any, mesh: partitioning.LogicalMesh
  ) -> scoring_lib.Scoring:
    """Returns the `Scoring` for samples on a mesh."""
    return scoring_lib.Scoring(
      reduce=self.reduce,
      model_weight=self.model_weight,
      functions=tuple(zip(self.functions, self.function_weights, strict=True)),
      decode=decoder(vocabulary),
      mesh=mesh,
      time_limit=self.time_limit,
    )


def check_judge(judge: Any) -> None:
  """Raises a ConfigError if the judge is given but cannot be called."""
  if judge is None:
    return
  if not callable(judge):
    raise errors.ConfigError(
      f'JUDGE is {judge!r}, which cannot be called; in your gin file write '
      'JUDGE = @my_module.my_judge.'
    )
  _check_signature(judge)


def _check_signature(function: RewardFunction) -> None:
  reward_functions.check_signature(
    function, operative_config.bound_arguments(function)
  )


def decoder(vocabulary: Any) -> scoring_lib.Decode:
  """Returns a function from tokens, with or without EOS at the end, to text."""

  def decode(tokens):
    return vocabulary.decode(feature_converters.strip_eos(tokens).tolist())

  return decode
