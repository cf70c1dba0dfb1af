"""Reads sweep.json, the results of a sweep."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Annotated, Any

from etils import epath

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.report import run_files

FILE_NAME = 'sweep.json'
FORMAT = 1
_REMEDY = (
  'It is damaged, or no sweep wrote it. Move it away and run the sweep again, '
  'which keeps its finished runs.'
)
_MOST_ROWS = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
  """The paired difference of an arm from the baseline, over seeds.

  Attributes:
    mean: mean difference.
    low: lower end of its interval; None if there are too few seeds.
    high: upper end.
    pairs: number of seeds that both have.
  """

  mean: float
  low: float | None
  high: float | None
  pairs: int


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train.

  Attributes:
    name: its name.
    arguments: what the command gets for it.
    learning_rates: those that were tried.
    best_learning_rate: the one chosen on validation; None if none has ended.
    at_edge: whether that is the smallest or the largest tried.
    tuning: `{'learning_rate', 'value'}` of the tuned metric.
    values: the compared metric by seed.
    mean: mean over seeds.
    std: spread over seeds.
    difference: from the baseline, which has none.
    extra: further figures.
  """

  name: str
  arguments: list[str]
  learning_rates: list[float]
  best_learning_rate: float | None
  at_edge: bool
  tuning: list[Mapping[str, Any]]
  values: Mapping[str, float | None]
  mean: float | None
  std: float | None
  difference: Difference | None = None
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def rank(self) -> int | None:
    """The rank of its adapters, if an argument says it."""
    for argument in self.arguments:
      if found := re.search(r'\bLORA_RANK\s*=\s*(\d{1,6})$', argument):
        return int(found[1])
    return None


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep."""

  arm: str
  learning_rate: float
  seed: int
  folder: str
  state: Annotated[str, checks.OneOf('done', 'failed', 'waiting', 'running')]
  value: float | None = None
  compared: float | None = None
  evaluation: str | None = None
  seconds: float | None = None
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep.

  Attributes:
    name: its name.
    command: the command that it runs.
    metric: the metric by which arms are compared.
    tuned_metric: the metric by which learning rates are chosen.
    higher_is_better: of the metric.
    baseline: the arm from which differences are taken; None without.
    confidence: probability of the intervals.
    seeds: seeds of each arm.
    arms: what is compared.
    cells: all runs.
  """

  name: str
  command: str
  metric: str
  tuned_metric: str
  higher_is_better: bool
  baseline: str | None
  confidence: Annotated[float, checks.Range(above=0, below=1)]
  seeds: list[int]
  arms: list[Arm]
  cells: list[Cell]


def read(path: epath.Path) -> Sweep:
  """Reads and checks a file.

  Raises:
    CheckpointError: it is not as a sweep writes it, or has another format.
  """
  source = str(path)
  try:
    raw = run_files.read_object(path)
  except ValueError as error:
    raise errors.CheckpointError(f'{source}: {error}. {_REMEDY}') from error
  if raw.get('format') != FORMAT:
    raise errors.CheckpointError(
      f'{source} has format {checks.shown(raw.get("format"))}; this version of '
      f'perlhf_jax reads {FORMAT}. Use the version that wrote it, or: {_REMEDY}'
    )
  arms = [
    _make(Arm, {**each, 'difference': _difference(each, source)}, source)
    for each in _rows(raw, 'arms', source)
  ]
  cells = [_make(Cell, each, source) for each in _rows(raw, 'cells', source)]
  # The arms and cells are checked; a schema checks only plain types.
  found = {**raw, 'arms': arms, 'cells': cells}
  return _make(Sweep, found, source)


def _difference(arm: Mapping[str, Any], source: str) -> Difference | None:
  found = arm.get('difference')
  return None if found is None else _make(Difference, found, source)


def _rows(raw: Mapping[str, Any], name: str, source: str) -> list[Any]:
  rows = raw.get(name)
  is_whole = isinstance(rows, list) and all(isinstance(x, dict) for x in rows)
  if not is_whole or len(rows) > _MOST_ROWS:
    raise errors.CheckpointError(
      f'{source}: {name} is no list of at most {_MOST_ROWS} objects. {_REMEDY}'
    )
  return rows


def _make(schema: Any, raw: Any, source: str) -> Any:
  return schemas.make(schema, raw, source, remedy=_REMEDY)
