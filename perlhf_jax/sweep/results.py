"""The results of a sweep so far, and sweep.json."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from etils import epath

from perlhf_jax.core import strict_json
from perlhf_jax.report import sweep_file
from perlhf_jax.sweep import comparison
from perlhf_jax.sweep import description

DONE, FAILED, WAITING, RUNNING = 'done', 'failed', 'waiting', 'running'


@dataclasses.dataclass
class CellResult:
  """What is known of a cell.

  Attributes:
    state: `done`, `failed`, `waiting` or `running`.
    is_trained: whether its training has finished.
    has_diverged: whether it failed because its loss was not finite.
    value: the validation metric; None if it is undefined or not known.
    is_evaluated: whether the figures that are compared are there.
    compared: the compared metric; None if it is undefined or not known.
    evaluation: identifies the configuration of its evaluation; None without.
    seconds: time that its command lines have taken; None if not known.
    error: the last lines of a failed command line.
    extra: further figures by name.
  """

  state: str = WAITING
  is_trained: bool = False
  has_diverged: bool = False
  value: float | None = None
  is_evaluated: bool = False
  compared: float | None = None
  evaluation: str | None = None
  seconds: float | None = None
  error: str | None = None
  extra: Mapping[str, float] = dataclasses.field(default_factory=dict)


Results = dict[description.Cell, CellResult]


def best_rate(
  sweep: description.Sweep, arm: description.Arm, results: Results
) -> float | None:
  """Returns the learning rate of an arm with the best validation metric.

  A rate whose loss was not finite, or whose metric is undefined, is worse than
  any other. Other failures say nothing about a rate, which then stays unknown.
  Of equal rates the smallest one is taken.

  Returns:
    The rate; None while rates are unknown, or if none has a value.
  """
  tuning = {
    cell.learning_rate: results.get(cell, CellResult())
    for cell in sweep.tuning_cells(arm)
  }
  if not all(map(_is_tried, tuning.values())):
    return None
  sign = 1 if sweep.tuned_higher_is_better else -1
  known = {
    rate: sign * each.value
    for rate, each in tuning.items()
    if each.is_trained and each.value is not None
  }
  return max(known, key=known.get) if known else None


def _is_tried(result: CellResult) -> bool:
  return result.is_trained or result.has_diverged


def num_left(sweep: description.Sweep, results: Results) -> int:
  """Returns the number of cells that are not over."""
  over = {cell for cell in results if results[cell].state in (DONE, FAILED)}
  left = 0
  for arm in sweep.all_arms:
    rate = best_rate(sweep, arm, results)
    tuning = {*sweep.tuning_cells(arm)}
    compared = set() if rate is None else {*sweep.compared_cells(arm, rate)}
    left += len((tuning | compared) - over)
    if not all(_is_tried(results.get(c, CellResult())) for c in tuning):
      left += len(sweep.seeds) - 1
  return left


def cells(sweep: description.Sweep, results: Results) -> list[description.Cell]:
  """Returns the cells that are known so far: an arm's best rate may not be."""
  found = {}
  for arm in sweep.all_arms:
    rate = best_rate(sweep, arm, results)
    chosen = [] if rate is None else sweep.compared_cells(arm, rate)
    found.update(dict.fromkeys([*sweep.tuning_cells(arm), *chosen]))
  return list(found)


def to_json(sweep: description.Sweep, results: Results) -> dict[str, Any]:
  """Returns the content of sweep.json."""
  arms = [_arm(sweep, arm, results) for arm in sweep.all_arms]
  values = {each['name']: _by_seed(each['values']) for each in arms}
  for each in arms:
    each['difference'] = None
    if sweep.baseline not in (None, each['name']):
      difference = comparison.paired_difference(
        values[each['name']], values[sweep.baseline]
      )
      each['difference'] = difference and difference._asdict()
  return {
    'format': sweep_file.FORMAT,
    'name': sweep.name,
    'command': sweep.command,
    'arguments': sweep.shared_arguments,
    'evaluate': None if sweep.evaluate is None else list(sweep.evaluate),
    'checkpoint': sweep.checkpoint,
    'metric': sweep.compared_metric,
    'tuned_metric': sweep.metric,
    'higher_is_better': sweep.compared_higher_is_better,
    'tuned_higher_is_better': sweep.tuned_higher_is_better,
    'baseline': sweep.baseline,
    'confidence': comparison.CONFIDENCE,
    'seeds': list(sweep.seeds),
    'runs_left': num_left(sweep, results),
    'arms': arms,
    'cells': [
      _cell(cell, results.get(cell, CellResult()))
      for cell in cells(sweep, results)
    ],
  }


def _arm(sweep, arm, results) -> dict[str, Any]:
  rate = best_rate(sweep, arm, results)
  grid = arm.learning_rates
  compared = {}
  if rate is not None:
    compared = {
      cell.seed: results[cell]
      for cell in sweep.compared_cells(arm, rate)
      if cell in results and results[cell].compared is not None
    }
  values = {seed: result.compared for seed, result in compared.items()}
  return {
    'name': arm.name,
    'arguments': list(arm.arguments),
    'learning_rates': list(grid),
    'best_learning_rate': rate,
    'at_edge': len(grid) > 1 and rate in (grid[0], grid[-1]),
    'tuning': [
      {
        'learning_rate': cell.learning_rate,
        'value': results.get(cell, CellResult()).value,
      }
      for cell in sweep.tuning_cells(arm)
    ],
    'values': {str(seed): value for seed, value in values.items()},
    'mean': comparison.mean_of(list(values.values())),
    'std': comparison.deviation_of(list(values.values())),
    'extra': _mean_extra([result.extra for result in compared.values()]),
  }


def _by_seed(values: Mapping[str, float]) -> dict[int, float]:
  return {int(seed): value for seed, value in values.items()}


def _mean_extra(extras: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Returns the means of the figures that all have."""
  shared = (
    [n for n in extras[0] if all(n in e for e in extras)] if extras else []
  )
  return {n: comparison.mean_of([each[n] for each in extras]) for n in shared}


def _cell(cell: description.Cell, result: CellResult) -> dict[str, Any]:
  return {
    'arm': cell.arm,
    'learning_rate': cell.learning_rate,
    'seed': cell.seed,
    'folder': cell.folder,
    'state': result.state,
    'value': result.value,
    'compared': result.compared,
    'evaluation': result.evaluation,
    'seconds': result.seconds,
    'error': result.error,
  }


def write(
  folder: epath.Path, sweep: description.Sweep, results: Results
) -> dict[str, Any]:
  """Writes sweep.json, and returns its content."""
  content = strict_json.null_nonfinite(to_json(sweep, results))
  text = strict_json.dumps(content, indent=2) + '\n'
  write_whole(folder / sweep_file.FILE_NAME, text)
  return content


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a file that is there whole, or as it was."""
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text)
  temporary.replace(path)


def read(folder: epath.Path) -> dict[str, CellResult]:
  """Reads what only sweep.json says of the cells of an earlier start.

  Returns:
    How long each cell has taken and how it was evaluated, by its folder.

  Raises:
    CheckpointError: sweep.json is damaged, or has another format.
  """
  path = folder / sweep_file.FILE_NAME
  if not path.exists():
    return {}
  return {
    cell.folder: CellResult(seconds=cell.seconds, evaluation=cell.evaluation)
    for cell in sweep_file.read(path).cells
  }
