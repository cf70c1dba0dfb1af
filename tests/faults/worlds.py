"""Models, data and command lines that faults happen to, and what is right.

There are two worlds: `t5` reads files of its own, and `pali` pictures. Both are
tiny versions of the demos' models. What a command makes when it is left alone
is made when it is first asked for.
"""

import json
import pathlib
import shutil
import threading
import time

import comparison
import numpy as np
from PIL import Image
import runs
import starting

LAST, HALF, PERIOD = 6, 4, 2
TRAINING = {'train_sft': 'sft', 'train_reward': 'rm', 'train_policy': 'policy'}
# What each of the others reads.
READING = {
  'evaluate': 'rm',
  'score': 'rm',
  'generate': 'sft',
  'convert': 'sft',
  'inspect': 'sft',
}
STAGES = (*TRAINING, *READING)
NAMES = 't5', 'pali'

_MODULE = """
import os
import sys
import time

from perlhf_jax.data import preference_tasks

_FILES = {'train': '{}.jsonl', 'validation': 'few_{}.jsonl'}
_FILES['test'] = _FILES['validation']
for _name, _kind in ('sft', 'sft'), ('rm', 'pairwise'), ('prompts', 'prompts'):
  preference_tasks.add_preference_task(
    f'faults_{_name}',
    _kind,
    dict,
    {split: file.format(_name) for split, file in _FILES.items()},
    base_dir=os.environ['FAULTS_DATA'],
  )
_calls = []


def commas(prompts, responses):
  _calls.append(1)
  act, _, call = os.environ.get('FAULTS_ACT', '').partition(':')
  scores = [float(response.count(',')) for response in responses]
  if not act or len(_calls) != int(call):
    return scores
  print(f'commas: {act}', file=sys.stderr, flush=True)
  if act == 'raise':
    raise RuntimeError('the judge is not at home')
  if act == 'hang':
    time.sleep(1000)
  if act == 'sys.exit':
    sys.exit(3)
  if act == 'too few':
    return scores[1:]
  return [{'NaN': float('nan'), 'huge': 1e25}[act], *scores[1:]]
"""
_GIN = """
from __gin__ import dynamic_registration
import fault_tasks

REWARD_FUNCTIONS = (@fault_tasks.commas,)
REWARD_TIME_LIMIT = 12
"""
_FEW = (
  *('--gin.LOG_PERIOD=1', f'--gin.EVAL_PERIOD={PERIOD}'),
  *(f'--gin.CHECKPOINT_PERIOD={PERIOD}', '--gin.LoopConfig.keep_latest=9'),
  '--gin.EVAL_EXAMPLES=8',
)


def _write_data(folder):
  folder.mkdir()
  for size, prefix in ((40, ''), (8, 'few_')):
    numbers = range(size)
    runs.write_rows(
      folder / f'{prefix}sft.jsonl',
      [{'inputs': f'say {i}', 'targets': f'{i}, {i}'} for i in numbers],
    )
    runs.write_rows(
      folder / f'{prefix}rm.jsonl',
      [
        {'inputs': f'say {i}', 'chosen': f'{i},', 'rejected': f'{i} {i + 1}'}
        for i in numbers
      ],
    )
    runs.write_rows(
      folder / f'{prefix}prompts.jsonl',
      [{'inputs': f'say {i} and {i}'} for i in numbers],
    )


class World:
  """One of the two.

  Attributes:
    name: `t5` or `pali`.
    home: folder in which commands are started.
    data: folder of rows; of `t5`.
    preloaded: starts commands.
    making: held while something that is right is made.
  """

  def __init__(self, name, folder, preloaded, timed=True):
    self.name, self.home, self.preloaded = name, folder, preloaded
    self.data = folder / 'data'
    folder.mkdir()
    _write_data(self.data)
    (folder / 'fault_tasks.py').write_text(_MODULE)
    (folder / 'faults.gin').write_text(_GIN)
    self._lines = folder / 'lines.jsonl'
    self._write_lines()
    self.making = threading.RLock()
    self._timed = timed
    self._wanted = {}
    self._seconds = {}

  def _write_lines(self):
    rows = [{'prompt': f'say {i}', 'response': f'{i},'} for i in range(5)]
    if self.name == 'pali':
      draw = np.random.default_rng(0)
      for i, row in enumerate(rows):
        row['image'] = str(self.home / f'{i}.png')
        pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(row['image'])
    runs.write_rows(self._lines, rows)

  @property
  def lines(self) -> pathlib.Path:
    """What `score` and `generate` read."""
    return self._lines

  def start(
    self, stage, case, *more, data=None, act='', **options
  ) -> starting.Command:
    """Starts a command.

    Args:
      stage: which.
      case: folder of what it reads and writes.
      *more: arguments behind the others.
      data: folder of rows, if not this world's.
      act: what the reward function does: `raise:2` at its second call.
      **options: of `Preloaded.start`.
    """
    environment = {
      'FAULTS_DATA': str(data or self.data),
      'FAULTS_ACT': act,
      **options.pop('environment', {}),
    }
    return self.preloaded.start(
      [*self._arguments(stage, case), *more],
      self.home,
      environment=environment,
      **options,
    )

  def _arguments(self, stage, case):
    if stage in TRAINING:
      return self._training(stage, case)
    flag = 'source' if stage == 'convert' else 'checkpoint'
    arguments = [stage, f'--{flag}={case / "model"}']
    lines = case / 'lines.jsonl'
    if not lines.exists():
      lines = self._lines
    files = f'--input={lines}', f'--output={case / "out"}', '--batch_size=4'
    module = ['--gin.MIXTURE_OR_TASK_MODULE="fault_tasks"']
    few = ['--batch_size=8', '--gin.EVAL_EXAMPLES=8']
    return (
      arguments
      + {
        'evaluate': few + (module if self.name == 't5' else []),
        'score': [*files],
        'generate': [*files, '--temperature=0', '--max_length=6'],
        'convert': ['--to=hf', f'--target={case / "out"}'],
        'inspect': [],
      }[stage]
    )

  def _training(self, stage, case):
    is_t5, short = self.name == 't5', TRAINING[stage]
    task = {'policy': 'prompts'}.get(short, short)
    more = [*_FEW]
    if is_t5:
      more.append('--gin.MIXTURE_OR_TASK_MODULE="fault_tasks"')
    elif short == 'sft':
      more.append('--gin.TRAIN_VIT=True')
    if short == 'policy':
      algorithm = 'reinforce' if is_t5 else 'rloo'
      more += [
        f'--gin_file=gin/rl/{algorithm}.gin',
        f"--gin.REWARD_CHECKPOINT='{self._input('rm', case)}'",
        '--gin.RewardShaping.normalize=True',
        '--gin.LEARNING_RATE=1e-2',
      ]
      if is_t5:
        more.append(f'--gin_file={self.home / "faults.gin"}')
      else:
        more.append('--gin.NUM_SAMPLES=2')
    return runs.arguments(
      stage,
      'none' if short == 'sft' else 'attention',
      case / 'run',
      f'faults_{task}' if is_t5 else f'demo_vqa_{task}',
      *more,
      start=None if short == 'sft' else self._input('sft', case),
      steps=LAST,
      tiny=runs.TINY if is_t5 else runs.TINY_PALI,
    )

  def _input(self, short, case):
    own = case / short
    return own if own.exists() else self.model(short)

  def model(self, short) -> pathlib.Path:
    """The MODEL_DIR of a run that was left alone."""
    stage = {name: stage for stage, name in TRAINING.items()}[short]
    self.wanted(stage)
    return self.home / short / 'run'

  def seconds(self, stage) -> float:
    """How long a command takes that is left alone."""
    self.wanted(stage)
    return self._seconds[stage]

  def wanted(self, stage, step=LAST) -> dict[str, object]:
    """What a command makes that is left alone.

    Args:
      stage: which.
      step: the newest of the model that it reads.

    Raises:
      RuntimeError: it fails.
    """
    with self.making:
      if (stage, step) not in self._wanted:
        self._wanted[stage, step] = self._make(stage, step)
      return self._wanted[stage, step]

  def change(self, stage, wanted) -> None:
    """Takes something else for right."""
    self._wanted[stage, LAST] = wanted

  def _make(self, stage, step):
    case = self.home / TRAINING.get(stage, f'{stage}_{step}')
    # An earlier attempt may have failed.
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    if stage in READING:
      self.copy(READING[stage], case / 'model', step, stopped=False)
    # Once compiled, it is timed.
    for _ in range(2 if self._timed and step == LAST else 1):
      shutil.rmtree(case / 'run', ignore_errors=True)
      shutil.rmtree(case / 'out', ignore_errors=True)
      began = time.monotonic()
      outcome = self.start(stage, case).wait()
      self._seconds[stage] = time.monotonic() - began
      if outcome.code != 0:
        raise RuntimeError(f'{stage} fails when it is left alone: {outcome}')
      if stage == 'train_policy':
        break  # It takes longest.
    return self.made(stage, case, outcome)

  def copy(self, short, target, step=LAST, stopped=True) -> None:
    """Copies a MODEL_DIR without the steps behind one.

    Args:
      short: `sft`, `rm` or `policy`.
      target: the copy.
      step: the newest that it has.
      stopped: whether the run is to go on from there.
    """
    shutil.copytree(self.model(short), target)
    if step < LAST and stopped:
      (target / 'summary.json').unlink()
    for each in (target / 'checkpoints').iterdir():
      if int(each.name) > step:
        shutil.rmtree(each)

  def made(self, stage, case, outcome) -> dict[str, object]:
    """Returns what a command has made, to be compared with `wanted`.

    Raises:
      OSError: something is missing.
      ValueError: something cannot be read.
    """
    if stage in TRAINING:
      return comparison.of_run(case / 'run', LAST)
    if stage == 'evaluate':
      return comparison.of_figures(case / 'model' / 'eval.json', case)
    if stage == 'inspect':
      text = comparison.of_text(outcome.out.encode(), case).decode()
      # How much lies there is not of the model.
      lines = [each for each in text.splitlines() if 'size:' not in each]
      return {'output': lines}
    if stage == 'convert':
      return comparison.of_folder(case / 'out', case)
    return {'output': (case / 'out').read_text()}


def change_rows(file, change) -> None:
  """Writes the rows of a file anew, as a function of the list makes them."""
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  runs.write_rows(file, change(rows))
