"""Checks the command lines of all cells before anything runs."""

from collections.abc import Sequence
import hashlib
import importlib
import os
from typing import Any, NamedTuple

import gin

from perlhf_jax import logs
from perlhf_jax.cli import command_line
from perlhf_jax.cli import commands
from perlhf_jax.cli import gin_loading
from perlhf_jax.cli import gin_scan
from perlhf_jax.core import errors
from perlhf_jax.core import gin_text
from perlhf_jax.core import operative_config
from perlhf_jax.sweep import description

_PATHS = (
  'BASELINE_CHECKPOINT',
  'BASE_CHECKPOINT_PATH',
  'ENSEMBLE',
  'INITIAL_CHECKPOINT_PATH',
  'INITIAL_VIT_PATH',
  'REWARD_CHECKPOINT',
  'VOCABULARY_PATH',
)
_BEST = os.path.join('checkpoints', 'best')
# Stands for a cell where the cell does not matter.
_ANY_CELL = 'CELL'


class Checked(NamedTuple):
  """What the command lines of a sweep say.

  Attributes:
    steps: TRAIN_STEPS of each arm.
    configs: the gin configuration of a cell of each arm, as text.
    evaluation: identifies the configuration of evaluations; None without.
  """

  steps: dict[str, int]
  configs: dict[str, str]
  evaluation: str | None


def check(sweep: description.Sweep, sweep_dir: str) -> Checked:
  """Checks the command lines of a sweep.

  Gin files, macros and paths are checked first, since gin names and tasks need
  imports that take seconds. The cells of an arm differ only in numbers that the
  sweep has checked, so one cell of each arm is looked at.

  Args:
    sweep: the sweep.
    sweep_dir: its folder.

  Returns:
    What they say.

  Raises:
    ConfigError: a command line has a mistake; the message names the arm.
  """
  scans = {}
  for arm in sweep.all_arms:
    cell = sweep.tuning_cells(arm)[0]
    words = sweep.words(cell, f'{sweep_dir}/{cell.folder}')
    place = f'the arm {arm.name}'
    scans[place] = words[0], _scan(place, words)
  steps = {
    arm.name: _value(scans[f'the arm {arm.name}'][1], 'TRAIN_STEPS')
    for arm in sweep.all_arms
  }
  if sweep.evaluate is not None:
    words = sweep.evaluation_words(_ANY_CELL)
    scans['EVALUATE'] = words[0], _scan('EVALUATE', words)
  for place, (_, scan) in scans.items():
    _check_paths(place, scan)
  texts = {
    place: _load(place, command, scan)
    for place, (command, scan) in scans.items()
  }
  _check_tasks(scans)
  evaluation = texts.pop('EVALUATE', None)
  return Checked(
    steps,
    {arm.name: texts[f'the arm {arm.name}'] for arm in sweep.all_arms},
    evaluation and hashlib.sha256(evaluation.encode()).hexdigest(),
  )


def _scan(place: str, words: Sequence[str]) -> gin_scan.Scan:
  """Reads a command line and its gin files, without imports."""
  name, *rest = words
  try:
    parsed = command_line.parse(name, commands.COMMANDS[name], rest)
  except errors.ConfigError as error:
    raise errors.ConfigError(f'{place}: {error}') from error
  if parsed.hosts is not None or parsed.check is not None:
    raise errors.ConfigError(
      f'{place}: the cells of a sweep run on one host, and --check has no '
      'effect; leave their flags out. --dry_run prints the commands for a '
      'launcher.'
    )
  return parsed.scan


def _load(place: str, command: str, scan: gin_scan.Scan) -> str:
  """Returns the gin configuration of a scan as text, and forgets it."""
  module, _, name = commands.COMMANDS[command].function.rpartition('.')
  try:
    with logs.without_noise():  # TensorFlow prints when it is imported.
      function = getattr(importlib.import_module(module), name)
      gin_loading.load(scan, function)
      return operative_config.config_text()
  except errors.ConfigError as error:
    raise errors.ConfigError(f'{place}: {error}') from error
  finally:
    gin.clear_config()


def _check_paths(place: str, scan: gin_scan.Scan) -> None:
  """Checks that the files and checkpoints of macros are there."""
  for macro in _PATHS:
    value = _value(scan, macro)
    for path in (value,) if isinstance(value, str) else value or ():
      if not isinstance(path, str) or '://' in path:
        continue
      if not os.path.exists(path.rstrip('/').removesuffix(_BEST)):
        raise errors.ConfigError(
          f'{place}: {macro} is {path!r}, which does not exist.'
        )


def _check_tasks(scans: dict[str, tuple[str, gin_scan.Scan]]) -> None:
  """Checks that the tasks are registered."""
  asked = {}
  for place, (_, scan) in scans.items():
    task = _value(scan, 'MIXTURE_OR_TASK_NAME')
    if isinstance(task, str):
      asked.setdefault((_value(scan, 'MIXTURE_OR_TASK_MODULE'), task), place)
  with logs.without_noise():
    from perlhf_jax.data import task_modules  # SeqIO is behind it.

    for (module, task), place in asked.items():
      try:
        task_modules.import_tasks(module)
        task_modules.find(task)
      except errors.ConfigError as error:
        raise errors.ConfigError(f'{place}: {error}') from error


def _value(scan: gin_scan.Scan, macro: str) -> Any:
  """Returns the value of a macro; None if it has none."""
  value = gin_text.Macro(macro)
  while isinstance(value, gin_text.Macro):
    value, _ = scan.macros.get(value.name, (None, ''))
  return value
