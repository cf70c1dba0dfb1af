"""Runs perlhf_jax and its rivals in turns, and prints medians and ratios.

Each rival is a process that waits while another one measures, so that what
disturbs the machine disturbs all of them. Needs nothing but Python; README.md
says how the environments and the rows are made.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
from typing import Any

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]


class Worker:
  """A rival in a process of its own."""

  def __init__(self, name: str, command: Sequence[str], code: pathlib.Path):
    """Starts it.

    Args:
      name: for messages.
      command: that runs a worker, see `rounds.py`.
      code: the checkout that it imports.
    """
    self.name, self.command = name, command
    environment = {
      # Threads that wait for others leave the cores to them.
      **{'OMP_WAIT_POLICY': 'passive', **os.environ},
      'PYTHONPATH': str(code),
    }
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=code,
      env=environment,
    )

  def answer(self) -> dict[str, Any]:
    """Reads a line of figures; what is no JSON is another library's chatter."""
    for line in self._process.stdout:
      if line.startswith('{'):
        return json.loads(line)
    raise SystemExit(
      f'{self.name} ended with code {self._process.wait()}: '
      f'{shlex.join(self.command)}'
    )

  def measure(self, number: int) -> dict[str, Any]:
    """Measures a round."""
    self._process.stdin.write(f'{number}\n')
    self._process.stdin.flush()
    return self.answer()

  def stop(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def reward_commands(options: argparse.Namespace) -> dict[str, list[str]]:
  """Returns the command of each rival of the reward step."""
  ours = [
    options.perlhf_python,
    str(_HERE / 'perlhf_reward.py'),
    f'--task={options.task}',
    f'--vocabulary={options.vocabulary}',
  ]
  theirs = [
    options.peers_python,
    str(_HERE / 'torch_reward.py'),
    f'--rows={options.rows}',
  ]
  commands = {
    'perlhf': [*ours, '--per_round=3'],
    'loop_group_by_length': [
      *(*theirs, '--model=loop', '--group_by_length', '--per_round=2')
    ],
    'loop': [*theirs, '--model=loop', '--per_round=2'],
    'trl': [*theirs, '--model=trl', '--per_round=1'],
  }
  if options.before:
    commands['perlhf_before'] = [*ours, '--per_round=1']
  return {
    name: [
      *command,
      f'--batch_size={options.batch_size}',
      f'--num_rounds={options.rounds}',
    ]
    for name, command in commands.items()
  }


def sampler_commands(options: argparse.Namespace) -> dict[str, list[str]]:
  """Returns the command of each rival of the sampler."""
  shapes = [
    f'--batch_size={options.batch_size}',
    f'--inputs={options.inputs}',
    f'--targets={options.targets}',
  ]
  return {
    'perlhf': [
      options.perlhf_python,
      str(_HERE / 'perlhf_sampler.py'),
      *shapes,
    ],
    'transformers': [
      options.peers_python,
      str(_HERE / 'torch_sampler.py'),
      *shapes,
    ],
  }


def iteration_commands(options: argparse.Namespace) -> dict[str, list[str]]:
  """Returns the command of each rival of an iteration."""
  shapes = [
    f'--batch_size={options.batch_size}',
    f'--inputs={options.inputs}',
    f'--targets={options.targets}',
  ]
  ours = [options.perlhf_python, str(_HERE / 'perlhf_iteration.py'), *shapes]
  return {
    'perlhf': ours,
    'perlhf_decoder': [*ours, '--tuning=decoder'],
    'perlhf_full': [*ours, '--tuning=full'],
    'trl_ppo': [options.peers_python, str(_HERE / 'torch_ppo.py'), *shapes],
  }


def rates(
  rounds: Sequence[Mapping[str, Any]], epoch_positions: float
) -> dict[str, float]:
  """Returns medians over the rounds.

  A round holds few batches. So what an example takes is what a position takes
  in the round, times the positions that an example has over the whole epoch.

  Args:
    rounds: figures of each.
    epoch_positions: of an example, padding included, over all batches.
  """
  total = {name: sum(r[name] for r in rounds) for name in rounds[0]}
  return {
    'examples_per_second': statistics.median(
      r['positions'] / epoch_positions / r['seconds'] for r in rounds
    ),
    'cpu_seconds_per_example': statistics.median(
      r['cpu_seconds'] * epoch_positions / r['positions'] for r in rounds
    ),
    'measured_examples_per_second': total['examples'] / total['seconds'],
    'epoch_positions': epoch_positions,
    'padding': 1 - total['tokens'] / total['positions'],
  }


def table(figures: Mapping[str, Mapping[str, float]], baseline: str) -> str:
  """Returns lines for people, with ratios to one of the rivals."""
  columns = ('examples/s', 'as measured', 'CPU s each', 'positions', 'padding')
  heading = f'{"":24}' + ''.join(f'{c:>12}' for c in (*columns, 'ratio', 'CPU'))
  lines = [heading]
  base = figures[baseline]
  for name, each in figures.items():
    rate, cpu = (
      each[n] / base[n]
      for n in ('examples_per_second', 'cpu_seconds_per_example')
    )
    lines.append(
      f'{name:24}'
      f'{each["examples_per_second"]:12.3f}'
      f'{each["measured_examples_per_second"]:12.3f}'
      f'{each["cpu_seconds_per_example"]:12.3f}'
      f'{each["epoch_positions"]:12.0f}'
      f'{each["padding"]:12.1%}'
      f'{1 / rate:12.2f}{cpu:12.2f}'
    )
  lines.append(
    f'ratio: how much faster {baseline} is, by medians of examples/s; CPU: by '
    'seconds of all cores.'
  )
  return '\n'.join(lines)


_COMMANDS = {
  'reward': reward_commands,
  'sampler': sampler_commands,
  'iteration': iteration_commands,
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('what', choices=tuple(_COMMANDS))
  parser.add_argument('--perlhf_python', default=sys.executable)
  parser.add_argument('--peers_python', required=True)
  parser.add_argument('--rounds', type=int, default=6)
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--inputs', type=int, default=256)
  parser.add_argument('--targets', type=int, default=64)
  parser.add_argument('--task', help='of the reward step')
  parser.add_argument('--vocabulary', help='of the reward step')
  parser.add_argument('--rows', help='of write_rows.py, for the reward step')
  parser.add_argument('--rivals', default='', help='names; all by default')
  parser.add_argument('--before', help='a checkout of an earlier commit')
  parser.add_argument('--output', help='a JSON file')
  options = parser.parse_args()
  commands = _COMMANDS[options.what](options)
  named = [name for name in options.rivals.split(',') if name]
  unknown = set(named) - set(commands)
  if unknown:
    parser.error(f'--rivals: {unknown} is not among {", ".join(commands)}')
  workers, ready = {}, {}
  for name in ['perlhf', *named] if named else commands:
    command = commands[name]
    code = options.before if name == 'perlhf_before' else _ROOT
    workers[name] = Worker(name, command, pathlib.Path(code).resolve())
    ready[name] = workers[name].answer()['ready']
    print(name, ready[name], flush=True)
  measured = {name: [] for name in workers}
  for number in range(options.rounds):
    for name, worker in workers.items():
      load = os.getloadavg()[0]
      figures = {**worker.measure(number), 'load': load}
      measured[name].append(figures)
      print(f'round {number + 1}', name, figures, flush=True)
  for worker in workers.values():
    worker.stop()
  result = {
    name: rates(rounds, ready[name]['epoch_positions'])
    for name, rounds in measured.items()
  }
  print(shlex.join(sys.argv))
  print(table(result, 'perlhf'))
  if options.output:
    pathlib.Path(options.output).write_text(
      json.dumps({'rates': result, 'rounds': measured}, indent=2) + '\n'
    )


if __name__ == '__main__':
  main()
