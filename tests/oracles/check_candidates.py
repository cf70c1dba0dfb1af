"""Compares our figures of candidates with the benchmarks' own code.

  python tests/oracles/check_candidates.py /tmp/candidates.json RM_BENCH

RM_BENCH is a checkout of github.com/THU-KEG/RM-Bench. `rewardbench` may be
installed without its dependencies: what scores needs `pandas` and `datasets`
alone, and the rest of its imports are replaced by mocks.
"""

import contextlib
import copy
import importlib.util
import io
import json
import pathlib
import sys
from unittest import mock

import datasets
import numpy as np

_MOCKED = (
  'torch',
  'transformers',
  'fastchat',
  'fastchat.conversation',
  'huggingface_hub',
  'rewardbench',
  'rewardbench.models',
  'rewardbench.utils',
)
_TOLERANCE = 1e-12


def _load(name: str, path: pathlib.Path):
  """Loads one file, without the packages around it."""
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  with mock.patch.dict(sys.modules, {n: mock.MagicMock() for n in _MOCKED}):
    spec.loader.exec_module(module)
  return module


def _reward_bench_file() -> pathlib.Path:
  """Finds rewardbench/utils.py without importing the package."""
  return next(
    path
    for folder in map(pathlib.Path, sys.path)
    if (path := folder / 'rewardbench' / 'utils.py').exists()
  )


def _best_of(reward_bench, lines) -> dict[str, float]:
  """RewardBench 2's score of each subset."""
  result = {}
  for subset in sorted({line['subset'] for line in lines}):
    own = [line for line in lines if line['subset'] == subset]
    if subset == 'Ties':
      names = 'id', 'num_correct', 'scores'
      columns = {name: [line[name] for line in own] for name in names}
      table = datasets.Dataset.from_dict(columns)
      _, result[subset] = reward_bench.process_single_model(table)
      continue
    unrolled = [
      {'text': 'r', 'scores': score, 'line': number}
      for number, line in enumerate(own)
      for score in line['scores']
    ]
    rolled = reward_bench.reroll_and_score_dataset(
      datasets.Dataset.from_list(unrolled),
      [len(line['scores']) for line in own],
    )
    result[subset] = float(np.mean(rolled['results']))
  return result


def _distances(world, reward_bench, rm_bench):
  """Yields the distance of each figure from the benchmark's."""
  ours = world['ours']
  for subset, score in _best_of(reward_bench, world['best_of']).items():
    yield (
      f'best_of {subset}',
      ours['best_of']['subsets'][subset]['score'],
      score,
    )
  with contextlib.redirect_stdout(io.StringIO()):
    theirs = rm_bench.compute_accuracy(copy.deepcopy(world['styles']))
  styles = ours['styles']
  for name in ('hard', 'normal', 'easy'):
    yield f'styles {name}', styles[name], theirs[f'{name}_acc']
  yield 'styles score', styles['score'], theirs['total_avg_acc']
  for domain, figures in styles['domains'].items():
    yield f'styles {domain}', figures['score'], theirs[domain]


def main(path: str, rm_bench_folder: str) -> None:
  """Prints the largest distance of each figure, and fails if one is large."""
  reward_bench = _load('reward_bench_utils', _reward_bench_file())
  scripts = pathlib.Path(rm_bench_folder) / 'scripts' / 'utils.py'
  rm_bench = _load('rm_bench_utils', scripts)
  largest = {}
  for world in json.loads(pathlib.Path(path).read_text()):
    for name, ours, theirs in _distances(world, reward_bench, rm_bench):
      largest[name] = max(largest.get(name, 0.0), abs(ours - theirs))
  for name, distance in largest.items():
    print(f'{name:24} {distance:.1e}')
  if max(largest.values()) > _TOLERANCE:
    sys.exit('A figure differs.')


if __name__ == '__main__':
  main(*sys.argv[1:])
