"""The description of a sweep: arms, learning rates, seeds, and metrics."""

from collections.abc import Mapping, Sequence
import dataclasses
import decimal
import difflib
import math
import re
from typing import Annotated, Any

from perlhf_jax.core import checks
from perlhf_jax.core import errors

# Whether the best or the last checkpoint of a run counts.
BEST, LAST = 'best', 'last'
# Macros that the sweep itself sets.
_OWN_MACROS = 'MODEL_DIR', 'LEARNING_RATE', 'RANDOM_SEED'
_OWN_FLAGS = {'checkpoint': 'CHECKPOINT_PATH', 'output': 'OUTPUT'}
_FOLDER_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+-]*')

Rate = Annotated[float, checks.Positive]
Seed = Annotated[int, checks.NotNegative]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One of the things that are compared.

  Attributes:
    name: name of the arm and of its folder.
    arguments: what its command lines have more than those of other arms.
    learning_rates: the rates that are tried, in rising order.
  """

  name: str
  arguments: tuple[str, ...]
  learning_rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep.

  Attributes:
    arm: name of the arm.
    learning_rate: its LEARNING_RATE.
    seed: its RANDOM_SEED.
  """

  arm: str
  learning_rate: float
  seed: int

  @property
  def folder(self) -> str:
    """Its MODEL_DIR, relative to the folder of the sweep."""
    return f'{self.arm}/lr={rate_text(self.learning_rate)},seed={self.seed}'

  def __str__(self):
    return f'{self.arm} lr={rate_text(self.learning_rate)} seed={self.seed}'


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A grid of runs of one training command.

  Each arm runs with its learning rates and the first seed. The rate with the
  best validation metric then runs with the other seeds, and these runs are
  compared.

  Attributes:
    name: title of the sweep.
    command: the training command of every cell.
    arms: for each arm, the arguments of the command line that only it has.
    learning_rates: the grid of every arm.
    seeds: the random seeds; the first one tunes the learning rate.
    metric: the metric of the validation records by which the learning rate is
      tuned.
    arguments: arguments of the command line that all cells share.
    settings: macros that all cells share.
    learning_rates_of: grids of arms that have one of their own.
    tuned_higher_is_better: whether a higher `metric` is better.
    checkpoint: `best`: of each run the checkpoint counts that the run itself
      keeps as its best; `last`: the last one.
    evaluate: arguments of `perlhf evaluate` for the compared runs; None to
      compare `metric` itself.
    compare: the metric of eval.json that is compared; by default `metric`.
    higher_is_better: whether a higher compared metric is better; by default it
      is, or is not, as for `metric` if that is compared.
    baseline: the arm with which the others are compared.
  """

  name: str
  command: Annotated[
    str, checks.OneOf('train_sft', 'train_reward', 'train_dpo', 'train_policy')
  ]
  arms: Mapping[str, Sequence[str]]
  learning_rates: Sequence[Rate]
  seeds: Sequence[Seed]
  metric: str
  arguments: Sequence[str] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learning_rates_of: Mapping[str, Sequence[Rate]] = dataclasses.field(
    default_factory=dict
  )
  tuned_higher_is_better: bool = True
  checkpoint: Annotated[str, checks.OneOf(BEST, LAST)] = BEST
  evaluate: Sequence[str] | None = None
  compare: str | None = None
  higher_is_better: bool | None = None
  baseline: str | None = None

  def __post_init__(self):
    checks.check_fields(self)
    if not self.arms:
      raise errors.ConfigError('ARMS is empty: name at least one arm.')
    if not self.seeds:
      raise errors.ConfigError(
        'SEEDS is empty: a sweep needs at least one seed, such as (0,).'
      )
    _check_distinct('SEEDS', self.seeds)
    for arm in self.arms:
      if not _FOLDER_NAME.fullmatch(arm):
        raise errors.ConfigError(
          f'ARMS has the name {arm!r}, which cannot be that of a folder; use '
          'letters, digits, _, ., + and -.'
        )
      if arm.startswith('sweep.'):
        raise errors.ConfigError(
          f'ARMS has the name {arm!r}, but names like sweep.json and sweep.md '
          'are those of files of the sweep; give the arm another name.'
        )
    for arm in self.learning_rates_of:
      self._check_arm('LEARNING_RATES_OF', arm)
    if self.baseline is not None:
      self._check_arm('BASELINE', self.baseline)
    for arm in self.all_arms:
      if not arm.learning_rates:
        raise errors.ConfigError(
          f'The arm {arm.name} has no learning rates: give LEARNING_RATES, or '
          f"LEARNING_RATES_OF = {{'{arm.name}': (1e-3,)}}."
        )
      _check_distinct(f'The grid of the arm {arm.name}', arm.learning_rates)
    if self.evaluate is None and self.compare is not None:
      raise errors.ConfigError(
        f'COMPARE is {self.compare!r}, a metric of eval.json, but EVALUATE is '
        'None: give EVALUATE = (), or leave COMPARE out.'
      )
    tuned, compared = self.tuned_higher_is_better, self.higher_is_better
    if self.compared_metric == self.metric and compared not in (None, tuned):
      raise errors.ConfigError(
        f'HIGHER_IS_BETTER is {compared}, but TUNED_HIGHER_IS_BETTER is {tuned}'
        f' for the same metric {self.metric!r}; leave HIGHER_IS_BETTER out.'
      )
    self._check_words()

  def _check_arm(self, setting: str, name: str) -> None:
    if name not in self.arms:
      near = difflib.get_close_matches(name, list(self.arms), n=1)
      hint = f' Did you mean {near[0]}?' if near else ''
      raise errors.ConfigError(
        f'{setting} names the arm {name}, which ARMS does not have.{hint} '
        f'The arms are {", ".join(self.arms)}.'
      )

  def _check_words(self) -> None:
    """Checks that nothing is given that the sweep sets by itself."""
    for name, value in self.settings.items():
      if name in _OWN_MACROS:
        raise _sets_itself('SETTINGS', name)
      if not _is_literal(value):
        raise errors.ConfigError(
          f'SETTINGS[{name!r}] is {checks.shown(value)}; it must be a Python '
          'literal, and its numbers finite. Put others into a gin file that '
          'ARGUMENTS names.'
        )
    given = {'ARGUMENTS': self.arguments, 'EVALUATE': self.evaluate or ()}
    given |= {f'ARMS[{name!r}]': words for name, words in self.arms.items()}
    for setting, words in given.items():
      for word in words:
        name = _macro_of(word)
        is_evaluation = setting == 'EVALUATE'
        own = _OWN_FLAGS.values() if is_evaluation else _OWN_MACROS
        if name in own:
          raise _sets_itself(setting, name)

  @property
  def all_arms(self) -> tuple[Arm, ...]:
    """The arms, in their order."""
    return tuple(
      Arm(
        name,
        tuple(words),
        tuple(sorted(self.learning_rates_of.get(name, self.learning_rates))),
      )
      for name, words in self.arms.items()
    )

  @property
  def compared_metric(self) -> str:
    """The metric that is compared."""
    return self.compare or self.metric

  @property
  def compared_higher_is_better(self) -> bool:
    """Whether a higher compared metric is better."""
    if self.compared_metric == self.metric:
      return self.tuned_higher_is_better
    return self.higher_is_better is not False

  @property
  def shared_arguments(self) -> list[str]:
    """The arguments that all cells share, settings included."""
    settings = [f'--gin.{n}={v!r}' for n, v in self.settings.items()]
    return [*self.arguments, *settings]

  def tuning_cells(self, arm: Arm) -> list[Cell]:
    """Returns the cells that tune an arm's learning rate."""
    first = self.seeds[0]
    return [Cell(arm.name, rate, first) for rate in arm.learning_rates]

  def compared_cells(self, arm: Arm, rate: float) -> list[Cell]:
    """Returns the cells of an arm that are compared; one of them tuned it."""
    return [Cell(arm.name, rate, seed) for seed in self.seeds]

  def words(self, cell: Cell, model_dir: str) -> list[str]:
    """Returns the command line of a cell, after `perlhf`."""
    return [
      self.command,
      *self.shared_arguments,
      *self.arms[cell.arm],
      f'--gin.LEARNING_RATE={cell.learning_rate!r}',
      f'--gin.RANDOM_SEED={cell.seed}',
      f'--gin.MODEL_DIR={model_dir!r}',
    ]

  def evaluation_words(self, model_dir: str) -> list[str]:
    """Returns the command line that evaluates a cell, after `perlhf`."""
    best = '/checkpoints/best' if self.checkpoint == BEST else ''
    return [
      'evaluate',
      f'--checkpoint={model_dir}{best}',
      *(self.evaluate or ()),
    ]


def rate_text(rate: float) -> str:
  """Writes a learning rate exactly and briefly, such as 3e-3."""
  _, digits, exponent = decimal.Decimal(repr(rate)).normalize().as_tuple()
  first, *rest = map(str, digits)
  mantissa = f'{first}.{"".join(rest)}' if rest else first
  return f'{mantissa}e{exponent + len(rest)}'


def _check_distinct(name: str, values: Sequence[float]) -> None:
  twice = [value for value in values if list(values).count(value) > 1]
  if twice:
    raise errors.ConfigError(f'{name} has {twice[0]} twice; leave one out.')


def _macro_of(word: str) -> str | None:
  """Returns the macro that an argument sets, if any."""
  name, _, value = word.lstrip('-').partition('=')
  if name == 'gin_bindings':
    return value.partition('=')[0].strip()
  return _OWN_FLAGS.get(name, name.removeprefix('gin.'))


def _sets_itself(setting: str, name: str) -> errors.ConfigError:
  return errors.ConfigError(
    f'{setting} gives {name}, which the sweep sets for every cell; leave it '
    'out.'
  )


def _is_literal(value: Any) -> bool:
  if isinstance(value, Mapping):
    return all(map(_is_literal, [*value.keys(), *value.values()]))
  if isinstance(value, list | tuple):
    return all(map(_is_literal, value))
  if isinstance(value, float):
    return math.isfinite(value)
  return value is None or isinstance(value, str | bool | int)
