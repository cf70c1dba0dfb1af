"""Trains a tiny policy for thousands of steps, and sees what grows.

  PYTHONPATH=.:tests/support python tests/soak/soak.py --steps=2000

Reads the memory of the training process (RssAnon of /proc) and the seconds per
step after each record of `metrics.jsonl`. The program ends with code 1 if the
memory grows by 2% between step 200 and the last one, or if the last quarter of
the steps takes 10% longer than the first quarter behind step 200.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import runs

# Programs are compiled and caches filled by then.
_WARM = 200
_PERIOD = 20
_MOST_GROWTH = 0.02
_MOST_SLOWER = 1.1
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
  """Reads the command line, trains and reports."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--output', help='file of the readings, as JSON')
  options = parser.parse_args()
  if options.steps < 2 * _WARM:
    parser.error(f'--steps must be at least {2 * _WARM}')
  with tempfile.TemporaryDirectory(prefix='perlhf_soak_') as folder:
    readings = _train(pathlib.Path(folder), options.steps)
  if options.output:
    pathlib.Path(options.output).write_text(json.dumps(readings) + '\n')
  sys.exit(_report(readings))


def _train(folder: pathlib.Path, steps: int) -> list[dict[str, float]]:
  """Trains the policy of a tiny chain; returns a reading for each record."""
  sft, rm, policy = (folder / name for name in ('sft', 'rm', 'policy'))
  _wait(_start(runs.arguments('train_sft', 'none', sft, 'demo_sft')))
  _wait(
    _start(
      runs.arguments('train_reward', 'attention', rm, 'demo_rm', start=sft)
    )
  )
  process = _start(
    runs.arguments(
      'train_policy',
      'attention',
      policy,
      'demo_prompts',
      '--gin_file=gin/rl/reinforce.gin',
      f"--gin.REWARD_CHECKPOINT='{rm}'",
      f'--gin.LOG_PERIOD={_PERIOD}',
      f'--gin.EVAL_PERIOD={_WARM // 2}',
      f'--gin.CHECKPOINT_PERIOD={_WARM // 2}',
      '--gin.EVAL_EXAMPLES=8',
      start=sft,
      steps=steps,
    )
  )
  readings: list[dict[str, float]] = []
  while process.poll() is None:
    time.sleep(0.1)
    step = _newest_step(policy / 'metrics.jsonl')
    if step and (not readings or step > readings[-1]['step']):
      readings.append(
        {
          'step': step,
          'seconds': time.monotonic(),
          'mib': _memory(process.pid),
        }
      )
  _wait(process)
  return readings


def _start(arguments: list[str]) -> subprocess.Popen:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    [sys.executable, '-m', 'perlhf_jax', *arguments],
    cwd=_ROOT,
    env=environment,
    stderr=subprocess.DEVNULL,
  )


def _wait(process: subprocess.Popen) -> None:
  if code := process.wait():
    raise RuntimeError(f'{process.args} ended with {code}')


def _newest_step(file: pathlib.Path) -> int:
  if not file.exists():
    return 0
  lines = file.read_text().split('\n')[:-1]
  records = map(json.loads, lines)
  return max((r['step'] for r in records if r['split'] == 'train'), default=0)


def _memory(process: int) -> float:
  """Returns the MiB that a process holds and that are not of a file."""
  status = pathlib.Path(f'/proc/{process}/status').read_text()
  found = re.search(r'RssAnon:\s+(\d+) kB', status)
  return int(found[1]) / 1024 if found else 0.0


def _report(readings: list[dict[str, float]]) -> int:
  """Prints growth and speed; returns the exit code."""
  warm = [each for each in readings if each['step'] >= _WARM and each['mib']]
  # Single readings go up and down with what is being saved.
  count = max(len(warm) // 10, 1)
  first, last = (
    statistics.median(each['mib'] for each in part)
    for part in (warm[:count], warm[-count:])
  )
  growth = last / first - 1
  rates = [
    (b['seconds'] - a['seconds']) / (b['step'] - a['step'])
    for a, b in itertools.pairwise(warm)
  ]
  quarter = max(len(rates) // 4, 1)
  early, late = map(statistics.median, (rates[:quarter], rates[-quarter:]))
  print(
    f'steps {warm[0]["step"]:,} to {warm[-1]["step"]:,}: memory {first:,.1f} '
    f'to {last:,.1f} MiB ({growth:+.2%}), step time {early * 1e3:.1f} to '
    f'{late * 1e3:.1f} ms ({late / early - 1:+.1%}), {len(warm)} readings'
  )
  return int(growth >= _MOST_GROWTH or late >= _MOST_SLOWER * early)


if __name__ == '__main__':
  main()
