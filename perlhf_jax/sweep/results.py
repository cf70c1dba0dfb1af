"""The results of a sweep so far, and sweep.json."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.sweep import comparison
from perlhf_jax.sweep import description
from perlhf_jax.sweep import run_files

FILE_NAME = 'sweep.json'
FORMAT = 1
DONE, FAILED, WAITING, RUNNING = 'done', 'failed', 'waiting', 'running'


@dataclasses.dataclass
class CellResult:
  """What is known of a cell.

  Attributes:
    state: `done`, `failed`, `waiting` or `running`.
    is_trained: whether its training has finished.
    value: the validation metric; None if it is undefined or not known.
    is_evaluated: whether the figures that are compared are there.
    compared: the compared metric; None if it is undefined or not known.
    seconds: time that its command lines have taken; None if not known.
    error: the last lines of a failed command line.
    extra: further figures by name.
  """

  state: str = WAITING
  is_trained: bool = False
  value: float | None = None
  is_evaluated: bool = False
  compared: float | None = None
  seconds: float | None = None
  error: str | None = None
  extra: Mapping[str, float] = dataclasses.field(default_factory=dict)


Results = dict[description.Cell, CellResult]


def best_rate(
  sweep: description.Sweep, arm: description.Arm, results: Results
) -> float | None:
  """Returns the learning rate of an arm with the best validation metric.

  A rate whose run has failed, or whose metric is undefined, is worse than any
  other. Of equal rates the smallest one is taken.

  Returns:
    The rate; None while runs are not over, or if all of them have failed.
  """
  tuning = {
    cell.learning_rate: results.get(cell, CellResult())
    for cell in sweep.tuning_cells(arm)
  }
  if not all(
    each.is_trained or each.state == FAILED for each in tuning.values()
  ):
    return None
  sign = 1 if sweep.tuned_higher_is_better else -1
  known = {
    rate: sign * each.value
    for rate, each in tuning.items()
    if each.is_trained and each.value is not None
  }
  return max(known, key=known.get) if known else None


def num_left(sweep: description.Sweep, results: Results) -> int:
  """Returns the number of cells that are not over."""
  over = {cell for cell in results if results[cell].state in (DONE, FAILED)}
  left = 0
  for arm in sweep.all_arms:
    rate = best_rate(sweep, arm, results)
    tuning = {cell for cell in sweep.tuning_cells(arm) if cell not in over}
    compared = set() if rate is None else {*sweep.compared_cells(arm, rate)}
    left += len(tuning | compared - over)
    if rate is None and tuning:
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
    'format': FORMAT,
    'name': sweep.name,
    'command': sweep.command,
    'arguments': sweep.shared_arguments,
    'evaluate': None if sweep.evaluate is None else list(sweep.evaluate),
    'checkpoint': sweep.checkpoint,
    'metric': sweep.compared_metric,
    'tuned_metric': sweep.metric,
    'higher_is_better': sweep.higher_is_better,
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
    'seconds': result.seconds,
    'error': result.error,
  }


def write(
  folder: epath.Path, sweep: description.Sweep, results: Results
) -> dict[str, Any]:
  """Writes sweep.json, and returns its content."""
  content = strict_json.null_nonfinite(to_json(sweep, results))
  write_whole(folder / FILE_NAME, strict_json.dumps(content, indent=2) + '\n')
  return content


def write_whole(path: epath.Path, text: str) -> None:
  """Writes a file that is there whole, or as it was."""
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text)
  temporary.replace(path)


def read(folder: epath.Path, sweep: description.Sweep) -> dict[str, float]:
  """Reads how long the cells of an earlier start have taken.

  Returns:
    Seconds, by the folder of the cell.

  Raises:
    CheckpointError: sweep.json cannot be read, or cells have begun with other
      arguments.
  """
  path = folder / FILE_NAME
  if not path.exists():
    return {}
  earlier = run_files.read_json(path)
  try:
    _check_same(folder, earlier, sweep)
    return {
      cell['folder']: cell['seconds']
      for cell in earlier['cells']
      if cell['seconds'] is not None
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.CheckpointError(
      f'{path} is not a sweep.json of this version. Move it away: the runs '
      'beside it are kept, and the sweep finds them.'
    ) from error


def _check_same(folder, earlier, sweep) -> None:
  """Checks that the cells that have begun have the same arguments now."""
  begun = {cell['arm'] for cell in earlier['cells'] if cell['state'] != WAITING}
  pairs = []
  if begun:
    pairs = [
      ('COMMAND', earlier['command'], sweep.command),
      ('ARGUMENTS and SETTINGS', earlier['arguments'], sweep.shared_arguments),
    ]
  if any(cell['compared'] is not None for cell in earlier['cells']):
    pairs.append(('CHECKPOINT', earlier['checkpoint'], sweep.checkpoint))
    if earlier['evaluate'] is not None:
      now = None if sweep.evaluate is None else list(sweep.evaluate)
      pairs.append(('EVALUATE', earlier['evaluate'], now))
  for arm in earlier['arms']:
    name = arm['name']
    if name in begun and name in sweep.arms:
      pairs.append(
        (f'ARMS[{name!r}]', arm['arguments'], list(sweep.arms[name]))
      )
  for setting, before, now in pairs:
    if before != now:
      raise errors.CheckpointError(
        f'{folder} has runs of another sweep: {setting} differs, '
        f'{_change(before, now)}. Give the earlier setting, or another '
        'SWEEP_DIR.'
      )


def _change(before: Any, now: Any) -> str:
  """Describes a change, by the words that differ."""
  if isinstance(before, list) and isinstance(now, list):
    gone = ' '.join(word for word in before if word not in now)
    new = ' '.join(word for word in now if word not in before)
    if gone or new:
      return f'{gone or "nothing"} was given before, {new or "nothing"} now'
  return f'{before!r} before, {now!r} now'
