import json
import os
import pathlib
import subprocess
import sys

import pytest

from perlhf_jax.cli import program_cache
from perlhf_jax.core import start_cache

ROOT = pathlib.Path(__file__).resolve().parents[1]
VARIABLES = (
  *('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
  for name in VARIABLES:
    monkeypatch.setenv(name, '')  # So that it is put back afterwards.
    monkeypatch.delenv(name)
  monkeypatch.setenv(start_cache.VARIABLE, str(tmp_path / 'cache'))
  return monkeypatch


def test_jax_is_told_of_a_folder_for_this_kind_of_processor(
  environment, tmp_path
):
  program_cache.use()
  first = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  assert first.parent == tmp_path / 'cache' / 'programs'
  read = pathlib.Path.read_text

  def read_text(path, *args):
    text = read(path, *args)
    return (
      text.replace('flags', 'flags : new') if 'cpuinfo' in path.name else text
    )

  environment.setattr(pathlib.Path, 'read_text', read_text)
  environment.setattr(program_cache.platform, 'processor', lambda: 'new')
  environment.delenv('JAX_COMPILATION_CACHE_DIR')
  program_cache.use()
  assert pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']) != first


def test_what_the_user_told_jax_is_left(environment, tmp_path):
  environment.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/programs')
  program_cache.use()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == 'gs://bucket/programs'
  assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('name', ['off', '/dev/null/folder'])
def test_without_a_folder_nothing_is_kept(environment, name):
  environment.setenv(start_cache.VARIABLE, name)
  program_cache.use()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def _perlhf(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'perlhf_jax', *arguments],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '1'},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_second_start_compiles_nothing_and_computes_the_same(
  environment, tmp_path
):
  environment.delenv('XLA_FLAGS', raising=False)  # As users have it.

  def train(name):
    done = _perlhf(
      *('train_sft', '--gin_file=gin/models/t5_tiny.gin'),
      *('--gin_file=gin/lora/none.gin', '--gin_file=gin/demo/world.gin'),
      *('--gin.MIXTURE_OR_TASK_NAME="demo_sft"', '--gin.TRAIN_STEPS=2'),
      *(f'--gin.MODEL_DIR="{tmp_path / name}"', '--gin.LOG_PERIOD=1'),
      *('--gin.EVAL_EXAMPLES=64', '--gin.BATCH_SIZE=8'),
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    records = map(json.loads, lines)
    summary = json.loads((tmp_path / name / 'summary.json').read_text())
    programs = {path.name for path in (tmp_path / 'cache').glob('*/*/*')}
    numbers = [
      {n: v for n, v in record.items() if 'second' not in n and n != 'time'}
      for record in records
    ]
    return numbers, summary['step_memory_bytes'], programs, done.stderr

  numbers, memory, programs, _ = train('first')
  assert any('train_step' in name for name in programs)
  assert memory > 0
  *second, log = train('second')
  assert second == [numbers, memory, programs]
  # TensorFlow says that it logs and looks for a GPU of NVIDIA's, cache or none.
  lines = [
    line
    for line in log.splitlines()
    if 'cuda' not in line and 'absl::InitializeLog()' not in line
  ]
  assert not [line for line in lines if line.startswith(('W', 'E'))], log
  assert 'feature' not in log, log
  assert not [line for line in lines if 'WARNING' in line], log


_PROGRAM = """
from perlhf_jax.cli import program_cache
program_cache.use()
import warnings
import jax
print(jax.jit(lambda x: x * 3 + 1)(2))
warnings.warn('another one')
"""


def test_a_damaged_program_is_compiled_again(tmp_path):
  def run():
    return subprocess.run(
      [sys.executable, '-c', _PROGRAM],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=True,
    )

  assert run().stdout == '7\n'
  (program,) = (tmp_path / 'cache').glob('*/*/jit__lambda-*')
  whole = program.stat().st_size
  program.write_bytes(program.read_bytes()[: whole // 2])
  second = run()
  assert second.stdout == '7\n'
  assert 'jit__lambda' in second.stderr and 'damaged' in second.stderr
  assert 'another one' in second.stderr
  assert program.stat().st_size > whole // 2
  third = run()
  assert third.stdout == '7\n'
  assert 'damaged' not in third.stderr


def test_what_compiles_for_other_chips_does_not_read_programs(tmp_path):
  # JAX could not read them, and would say so for each.
  done = _perlhf('plan', '--topology=no-such-slice')
  assert done.returncode == 2
  assert not (tmp_path / 'cache').exists()
