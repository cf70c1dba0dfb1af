import json
import os
import pathlib
import subprocess
import sys

import runs

_ROOT = pathlib.Path(__file__).parents[2]
_PROGRAM = pathlib.Path(__file__).with_name('bare_machine_program.py')


def test_runs_without_tensorflow(tmp_path):
  output = tmp_path / 'figures.json'
  result = subprocess.run(
    [
      *(sys.executable, str(_PROGRAM), 'benchmark'),
      '--gin_file=gin/models/t5_tiny.gin',
      '--gin_file=gin/rl/rloo.gin',
      *(flag for flag in runs.TINY if flag.startswith('--gin.T5Config.')),
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
      *('--gin.BATCH_SIZE=2', '--gin.REPEATS=1'),
      "--gin.TUNINGS=('lora',)",
      f'--output={output}',
    ],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  figures = json.loads(output.read_text())
  assert figures['setting']['prompts'] == 'random'
  # One tuning has nothing that it is held against.
  assert 'lora' in figures
  assert not {'full', 'lora_over_full'} & set(figures)
  (heading,) = (x for x in result.stdout.splitlines() if x.strip() == 'LoRA')
  assert heading


def test_a_task_says_what_is_missing():
  result = subprocess.run(
    [
      *(sys.executable, str(_PROGRAM), 'benchmark'),
      '--gin_file=gin/models/t5_tiny.gin',
      '--gin_file=gin/rl/rloo.gin',
      "--gin.MIXTURE_OR_TASK_NAME='demo_rm'",
    ],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2, result.stderr[-3000:]
  assert 'Traceback' not in result.stderr
  assert 'seqio' in result.stderr and 'pip install' in result.stderr
