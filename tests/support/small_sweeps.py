"""A small sweep, and runs of it that only write what a run leaves."""

import json
import re
import shlex

import pytest

from perlhf_jax.core import errors
from perlhf_jax.sweep import children as children_lib
from perlhf_jax.sweep import command_checks
from perlhf_jax.sweep import description
from perlhf_jax.sweep import sweep as sweep_lib
from perlhf_jax.training import train_loop

# Of a run.
STEPS = 3


def diverged():
  """How a run ends whose loss is not finite."""
  nan = float('nan')
  with pytest.raises(errors.UserError) as raised:
    train_loop.check_finite(2, {'loss': nan, 'grad_norm': nan})
  return children_lib.Ended(2, str(raised.value))


class Runs:
  """Stands for the commands.

  Attributes:
    done: what was run, such as `train lora/lr=1e-3,seed=5`.
    accuracy: of a cell, by its arm, rate and seed.
    failing: how commands fail, by what they run.
    told_at: number of commands before SIGTERM comes.
    gin: what the gin files of training have more.
    evaluation_gin: what those of evaluations have more.
  """

  def __init__(self, folder):
    self.folder = folder
    self.done = []
    self.failing = {}
    self.told_at = None
    self.gin = self.evaluation_gin = ''

  @staticmethod
  def accuracy(arm, rate, seed):
    best = {'lora': 3e-3, 'full': 1e-4}[arm]
    return 0.9 - abs(rate - best) + 0.01 * seed + 0.05 * (arm == 'full')

  def check(self, sweep, _):
    """Stands for `command_checks.check`."""
    configs = {
      arm.name: self._config(sweep.words(sweep.tuning_cells(arm)[0], 'any'))
      for arm in sweep.all_arms
    }
    evaluation = None
    if sweep.evaluate is not None:
      evaluation = self._config(sweep.evaluation_words('any'))
    steps = dict.fromkeys(sweep.arms, STEPS)
    return command_checks.Checked(steps, configs, evaluation)

  def _config(self, words):
    """Returns the gin text of a command line, its last gin file by name."""
    pairs = [word.removeprefix('--').split('=', 1) for word in words[1:]]
    is_evaluation = words[0] == 'evaluate'
    more = self.evaluation_gin if is_evaluation else self.gin
    lines = [f'COMMAND = {words[0]!r}', more]
    lines += [
      f'{name[4:]} = {value}' if name.startswith('gin.') else f'F = {value!r}'
      for name, value in pairs
    ]
    return '\n'.join(lines)

  def run(self, children, words, log):
    command, *rest = words
    text = ' '.join(rest)
    arm, rate, seed = re.search(
      r'(\w+)/lr=([\d.e-]+),seed=(\d+)', text
    ).groups()
    name = f'{arm}/lr={rate},seed={seed}'
    kind = 'evaluate' if command == 'evaluate' else 'train'
    if self.told_at == len(self.done):
      self.told_at, children.is_told = None, True
      return children_lib.Ended(errors.GOES_ON, 'stopped')
    self.done.append(f'{kind} {name}')
    if f'{kind} {name}' in self.failing:
      return self.failing[f'{kind} {name}']
    model_dir = self.folder / name
    model_dir.mkdir(parents=True, exist_ok=True)
    value = self.accuracy(arm, float(rate), int(seed))
    if kind == 'evaluate':
      content = {'step': STEPS, 'judge_score': 100 * value, 'kl_k1': 2.0}
      (model_dir / 'eval.json').write_text(json.dumps(content))
    else:
      records = [
        {'step': 2, 'split': 'eval', 'accuracy': 1.5},
        {'step': STEPS, 'split': 'train', 'loss': 1.0},
        {'step': STEPS, 'split': 'eval', 'accuracy': value, 'loss': -value},
      ]
      (model_dir / 'metrics.jsonl').write_text(
        ''.join(json.dumps(record) + '\n' for record in records)
      )
      (model_dir / 'config.gin').write_text(self._config(words))
      summary = {'steps': STEPS, 'trainable_fraction': 0.25}
      (model_dir / 'summary.json').write_text(json.dumps(summary))
    return children_lib.Ended(0, '')


def make(**changes):
  """Returns the description of a sweep."""
  return description.Sweep(
    **{
      'name': 'A test',
      'command': 'train_reward',
      'arms': {'lora': ('--gin_file=a.gin',), 'full': ('--gin_file=b.gin',)},
      'learning_rates': (3e-3, 1e-3),
      'learning_rates_of': {'full': (1e-4,)},
      'seeds': (5, 6, 7),
      'metric': 'accuracy',
      'arguments': ('--gin_file=model.gin',),
      'settings': {'MIXTURE_OR_TASK_NAME': "o'clock", 'TRAIN_STEPS': 3},
      'baseline': 'full',
      **changes,
    }
  )


KILLED = children_lib.Ended(-9, 'killed by SIGKILL; out of memory?')

EVALUATED = {'evaluate': ('--gin.SPLIT="test"',), 'compare': 'judge_score'}

ALL = [
  'train lora/lr=1e-3,seed=5',
  'train lora/lr=3e-3,seed=5',
  'train full/lr=1e-4,seed=5',
  'train lora/lr=3e-3,seed=6',
  'train lora/lr=3e-3,seed=7',
  'train full/lr=1e-4,seed=6',
  'train full/lr=1e-4,seed=7',
]


def start(runs, *, dry_run=False, **changes):
  """Runs a sweep; returns sweep.json."""
  changes = {'checkpoint': 'last', **changes}
  sweep_lib.sweep(
    sweep=make(**changes), sweep_dir=str(runs.folder), dry_run=dry_run
  )
  return read(runs)


def read(runs):
  path = runs.folder / 'sweep.json'
  return json.loads(path.read_text()) if path.exists() else None


def printed(capsys):
  return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
