"""Injects faults into commands, and sees how each of them ends.

  PYTHONPATH=.:tests/support python tests/faults/campaign.py \\
    --faults=200 --seed=0 --output=table.json

A fault happens to a copy of a tiny model, of the kind that launch/demo.sh or
launch/demo_vqa.sh trains, while a command trains or reads it. Where the command
then goes on, by itself or when somebody has done what its message says, its
result is compared with that of a command that was left alone: every leaf of the
last step, the optimizer's too, every record, or all that was written. The
program ends with code 1 if a fault was not recovered from to the bit and not
told by one message. Equal seeds inject equal faults; at which moment of a
command a kill comes is a matter of the machine, too.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import json
import math
import pathlib
import shutil
import sys
import tempfile
import time
from typing import NamedTuple

import cases
import damages
import disks
import interruptions
import own_rewards
import several
import starting
import worlds

_TRAINING = tuple(worlds.TRAINING)
_READING = tuple(worlds.READING)
_WRITING = tuple(s for s in worlds.STAGES if s != 'inspect')
_LOADING = 'train_reward', 'train_policy'
_LINES = 'score', 'generate'


class Kind(NamedTuple):
  """A kind of fault.

  Attributes:
    inject: makes it happen, and returns a verdict.
    share: of all faults, relative to those of the others.
    stages: to which it happens, each in turn.
    names: worlds in which it does, likewise.
  """

  inject: Callable[[cases.Case], str]
  share: int
  stages: Sequence[str]
  names: Sequence[str] = worlds.NAMES


KINDS = {
  'nothing': Kind(interruptions.nothing, 3, worlds.STAGES),
  'kill': Kind(interruptions.kill, 32, worlds.STAGES),
  'kill twice': Kind(interruptions.kill_twice, 4, _TRAINING),
  'SIGTERM': Kind(interruptions.sigterm, 20, worlds.STAGES),
  'SIGTERM twice': Kind(interruptions.sigterm_twice, 4, _TRAINING),
  'clock': Kind(interruptions.clock, 8, worlds.STAGES),
  'size limit': Kind(disks.limit, 14, _WRITING),
  'full disk': Kind(disks.full, 14, _WRITING),
  'read-only disk': Kind(disks.read_only, 6, worlds.STAGES),
  'folder removed': Kind(disks.removed, 6, _TRAINING),
  'file of a step': Kind(damages.step_file, 40, worlds.STAGES),
  'whole step': Kind(damages.whole_step, 14, worlds.STAGES),
  'step that is given': Kind(damages.named_step, 8, _LOADING),
  'records': Kind(damages.record, 14, _TRAINING),
  'lines': Kind(damages.lines, 7, _LINES),
  'rows': Kind(damages.rows, 12, _TRAINING, ['t5']),
  'reward function': Kind(own_rewards.reward, 14, ['train_policy'], ['t5']),
  'two at once': Kind(several.writers, 10, _WRITING),
  'read meanwhile': Kind(several.reader, 5, _READING),
  'one of two': Kind(several.hosts, 6, ['train_sft', 'train_reward'], ['t5']),
}
_NEED_DISKS = 'full disk', 'read-only disk'


class Fault(NamedTuple):
  """A fault to inject.

  Attributes:
    kind: of `KINDS`.
    number: which of its kind, from 0 on.
    name: of its world.
    stage: the command.
  """

  kind: str
  number: int
  name: str
  stage: str


def draw(count: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
  """Returns faults of all kinds, by their shares, well mixed.

  Args:
    count: how many at least; of each kind there is one.
    kinds: names of kinds.
  """
  total = sum(KINDS[kind].share for kind in kinds)
  placed = []
  for kind in kinds:
    own = math.ceil(count * KINDS[kind].share / total)
    faults = zip(_of_kind(kind), range(own), strict=False)
    placed += [((i + 0.5) / own, fault) for fault, i in faults]
  return [fault for _, fault in sorted(placed, key=lambda each: each[0])]


def _of_kind(kind: str) -> Iterator[Fault]:
  stages, names = KINDS[kind].stages, KINDS[kind].names
  number = 0
  while True:
    # Stages and worlds turn at once, and come together in every way.
    lap = number // len(stages)
    name = names[(number + lap) % len(names)]
    yield Fault(kind, number, name, stages[number % len(stages)])
    number += 1


class Campaign:
  """A place for faults to happen; a context that removes it."""

  def __init__(
    self, seed: int, preloaded: starting.Preloaded, timed: bool = True
  ):
    """Makes the place.

    Args:
      seed: of what is random of a fault.
      preloaded: starts commands.
      timed: whether commands that are left alone run once more, to be timed.
    """
    self._seed = seed
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix='perlhf_faults_'))
    self._worlds = {
      name: worlds.World(name, self._folder / name, preloaded, timed)
      for name in worlds.NAMES
    }

  def __enter__(self) -> 'Campaign':
    """Returns itself."""
    return self

  def __exit__(self, *_) -> None:
    """Removes all."""
    shutil.rmtree(self._folder, ignore_errors=True)

  def world(self, name: str) -> worlds.World:
    """Returns one of the worlds."""
    return self._worlds[name]

  def run(self, fault: Fault) -> dict[str, object]:
    """Injects a fault.

    Returns:
      A row of the table: what it was, the verdict, and why.
    """
    began = time.monotonic()
    folder = (
      self._folder / 'cases' / f'{fault.kind}_{fault.number}'.replace(' ', '_')
    )
    seed = f'{self._seed}/{fault.kind}/{fault.number}'
    case = cases.Case(
      self._worlds[fault.name], fault.stage, folder, seed, fault.number
    )
    note = ''
    try:
      verdict = KINDS[fault.kind].inject(case)
    except cases.Failure as failure:
      verdict, note = failure.verdict, str(failure)
    except Exception as error:  # Of ours: the other faults still count.
      verdict, note = cases.STUCK, f'the campaign itself: {error!r}'
    row = {**fault._asdict(), 'what': case.what, 'verdict': verdict}
    row |= {'note': note, 'seconds': round(time.monotonic() - began, 1)}
    if verdict in cases.BAD:
      row['said'] = case.said[-4000:]
    case.remove()
    return row


def table(rows: Sequence[dict[str, object]]) -> str:
  """Returns the table by kinds, of which the last line is the sum."""
  verdicts = [*cases.GOOD, *cases.BAD]
  counts = {kind: Counter() for kind in KINDS}
  for row in rows:
    counts[row['kind']][row['verdict']] += 1
  lines = [['kind', 'faults', *verdicts]]
  for kind, count in counts.items():
    if count:
      numbers = [count.total(), *(count[verdict] for verdict in verdicts)]
      lines.append([kind, *map(str, numbers)])
  sums = [
    sum(int(line[i]) for line in lines[1:]) for i in range(1, len(lines[0]))
  ]
  lines.append(['all', *map(str, sums)])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> None:
  """Reads the command line and injects faults."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--faults', type=int, default=200, help='how many')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', default='table.json', help='file of the rows')
  parser.add_argument('--jobs', type=int, default=1, help='faults at once')
  parser.add_argument('--kind', help='one kind alone')
  parser.add_argument('--number', type=int, help='one of that kind alone')
  options = parser.parse_args()
  kinds = [options.kind] if options.kind else list(KINDS)
  if not disks.can_mount():
    print('Disks cannot be mounted here, so that none is full or read-only.')
    kinds = [kind for kind in kinds if kind not in _NEED_DISKS]
  faults = draw(options.faults, kinds)
  if options.number is not None:
    faults = [fault for fault in faults if fault.number == options.number]
  rows = []
  with (
    tempfile.TemporaryDirectory(prefix='perlhf_programs_') as programs,
    contextlib.closing(starting.Preloaded(programs)) as preloaded,
    Campaign(options.seed, preloaded) as campaign,
    futures.ThreadPoolExecutor(options.jobs) as pool,
  ):
    for row in pool.map(campaign.run, faults):
      rows.append(row)
      print(
        '{kind}, {name} {stage}: {what}: {verdict} ({seconds} s)'.format(**row),
        row['note'],
        flush=True,
      )
      pathlib.Path(options.output).write_text(json.dumps(rows, indent=1) + '\n')
  print(table(rows))
  sys.exit(any(row['verdict'] in cases.BAD for row in rows))


if __name__ == '__main__':
  main()
