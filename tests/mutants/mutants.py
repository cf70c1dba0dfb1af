"""Mutates objectives, rl, sampling and models, and counts what tests notice.

  PYTHONPATH=.:tests/support:tests/mutants python tests/mutants/mutants.py \\
    --mutants=200 --seed=0 --session=mutants.sqlite

The mutants are those of cosmic-ray's operators, see places.py; killers.py says
which test files have to fail for those of a module. Of a place in the source,
such as one `<`, one mutant is drawn. The session is a file of cosmic-ray, which
`cr-report` reads, too. A second call with the same session goes on where the
first one stopped. The program ends with code 1 if fewer than --least percent of
the mutants were killed.
"""

import argparse
from collections.abc import Iterator
import difflib
import os
import pathlib
import random
import re
import sys
import time

from cosmic_ray import work_db
from cosmic_ray import work_item
from cosmic_ray.work_item import WorkItem
import forks
import killers
import places

_M = re.MULTILINE


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--mutants', type=int, default=200)
  parser.add_argument('--all', action='store_true', help='mutants, no sample')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--session', type=pathlib.Path, default=pathlib.Path('mutants.sqlite')
  )
  parser.add_argument('--modules', nargs='*', help='perlhf_jax/rl/ppo.py ...')
  parser.add_argument(
    '--again', action='store_true', help='test those that survived again'
  )
  parser.add_argument('--least', type=float, default=90, help='percent')
  options = parser.parse_args()
  with work_db.use_db(options.session.resolve()) as session:
    if not session.num_work_items:
      session.add_work_items(_draw(options))
    todo = session.pending_work_items
    if options.again:
      todo = [item for item, _ in _survivors(session)]
    if todo:
      _test(sorted(todo, key=lambda item: item.job_id), session)
    percent = _report(session)
  sys.exit(percent < options.least)


def _draw(options: argparse.Namespace) -> Iterator[WorkItem]:
  by_place = {}
  for module in options.modules or killers.KILLERS:
    for spec in places.mutants(forks.ROOT / module, module):
      by_place.setdefault((module, spec.start_pos), []).append(spec)
  drawn = list(by_place.values())
  print(f'{sum(map(len, drawn))} mutants of {len(drawn)} places', flush=True)
  rng = random.Random(options.seed)
  rng.shuffle(drawn)
  number = 0
  for specs in drawn:
    rng.shuffle(specs)
    for spec in specs:
      if number == options.mutants and not options.all:
        return
      source = (forks.ROOT / spec.module_path).read_text(encoding='utf-8')
      if places.mutate(source, spec) is not None:
        # In the order of the draw: the first half is a sample, too.
        yield WorkItem.single(f'{number:05}', spec)
        number += 1
        if not options.all:
          break


def _test(items: list[WorkItem], session: work_db.WorkDB) -> None:
  with forks.copy_of_checkout() as copy:
    sound = set()
    for number, item in enumerate(items):
      (spec,) = item.mutations
      begin = time.monotonic()
      files = killers.KILLERS[str(spec.module_path)]
      result = _result(spec, copy / spec.module_path, files, number)
      if result.is_killed:
        _check_without_mutant(_failed(result.output, files), sound)
      session.set_result(item.job_id, result)
      print(
        f'{_name(item)}: {result.test_outcome.value}'
        f' in {time.monotonic() - begin:.0f} s',
        flush=True,
      )


def _result(
  spec: work_item.MutationSpec,
  path: pathlib.Path,
  files: tuple[str, ...],
  number: int,
) -> work_item.WorkResult:
  original = path.read_text(encoding='utf-8')
  mutated = places.mutate(original, spec)
  diff = difflib.unified_diff(
    original.splitlines(), mutated.splitlines(), lineterm='', n=1
  )
  path.write_text(mutated, encoding='utf-8')
  # Bytecode belongs to a second and a size, and mutants may share both.
  os.utime(path, (number, number))
  code, output = forks.run_tests(files)
  path.write_text(original, encoding='utf-8')
  outcome = work_item.TestOutcome
  return work_item.WorkResult(
    worker_outcome=work_item.WorkerOutcome.NORMAL,
    test_outcome=outcome.KILLED if code else outcome.SURVIVED,
    output=output,
    diff='\n'.join(diff),
  )


def _failed(output: str, files: tuple[str, ...]) -> tuple[str, ...]:
  """Returns what pytest has to be called with to run what failed."""
  if found := re.search(r'^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$', output, _M):
    return (found[1],)
  if found := re.search(r'^ERROR (\S+\.py)', output, _M):
    return '--collect-only', found[1]
  return files  # A crash, or the time limit.


def _check_without_mutant(
  arguments: tuple[str, ...], sound: set[tuple[str, ...]]
) -> None:
  if arguments not in sound:
    code, output = forks.run_tests(arguments)
    if code:
      sys.exit(f'{arguments[-1]} fails without a mutant, too:\n{output}')
    sound.add(arguments)


def _survivors(
  session: work_db.WorkDB,
) -> list[tuple[WorkItem, work_item.WorkResult]]:
  done = session.completed_work_items
  return [pair for pair in done if not pair[1].is_killed]


def _name(item: WorkItem) -> str:
  (spec,) = item.mutations
  line, column = spec.start_pos
  operator = spec.operator_name.partition('/')[2]
  return f'{item.job_id} {spec.module_path}:{line}:{column} {operator}'


def _report(session: work_db.WorkDB) -> float:
  survivors = _survivors(session)
  for item, result in survivors:
    print(f'\n{_name(item)} survived\n{result.diff}')
  tested = session.num_results
  killed = tested - len(survivors)
  percent = 100 * killed / max(1, tested)
  print(
    f'\n{killed} of {tested} mutants were killed ({percent:.1f}%);'
    f' {session.num_work_items - tested} are left'
  )
  return percent


if __name__ == '__main__':
  main()
