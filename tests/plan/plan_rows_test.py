"""Rows of `perlhf plan` are there as they come, and are not compiled twice."""

import json
import logging as python_logging

import jax
import pytest

from perlhf_jax.cli import main
from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.training import topologies

_COMMAND = (
  'plan',
  '--gin_file=gin/runs/plan.gin',
  '--gin_file=gin/models/t5_tiny.gin',
  '--gin_file=gin/rl/rloo.gin',
  '--gin.T5Config.emb_dim=8',
  '--gin.T5Config.num_encoder_layers=1',
  '--gin.T5Config.num_decoder_layers=1',
  '--gin.T5Config.vocab_size=64',
  '--gin.BATCH_SIZE=4',
  '--gin.NUM_SAMPLES=2',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
  '--topology=v5e-1',
)
_ALL = [
  (tuning, program)
  for program in programs_lib.PIPELINE
  for tuning in ('full', 'lora')
]


@pytest.fixture
def compiled(monkeypatch):
  """Names of the programs that were compiled; fails when `limit` are."""
  compiled = _Compiled()

  def compile_program(program, limit_bytes, options):
    if len(compiled) == compiled.limit:
      raise InterruptedError
    compiled.append(program.name)
    return {
      'program': program.name,
      'argument_bytes': 1,
      'expected_argument_bytes': 1,
      'temp_bytes': 1,
      'peak_bytes': 2 * 2**20,
      'held_bytes': 0,
      'limit_bytes': limit_bytes,
      'fits': True,
      'doubtful': False,
      'compile_seconds': 1.0,
    }

  monkeypatch.setattr(topologies, 'devices', lambda _: jax.devices()[:1])
  monkeypatch.setattr(compiling, 'compile_program', compile_program)
  return compiled


class _Compiled(list):
  limit = None


def _rows(path):
  rows = json.loads(path.read_text())
  return [(row['tuning'], row['program']) for row in rows]


def test_what_was_stopped_goes_on(compiled, tmp_path, capsys, caplog):
  path = tmp_path / 'plan.json'
  command = [*_COMMAND, f'--output={path}']
  compiled.limit = 3
  with pytest.raises(InterruptedError):
    main.run(command)
  assert _rows(path) == _ALL[:3]
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].startswith('Rloo; prompts of 8 tokens')
  shown = [line.split()[:2] for line in printed[-3:]]
  assert shown == [[program, tuning] for tuning, program in _ALL[:3]]

  compiled.clear()
  compiled.limit = None
  with caplog.at_level(python_logging.INFO, 'absl'):
    assert main.run(command) == 0
  assert compiled == [program for _, program in _ALL[3:]]
  assert 'plan.json: using its 3 rows' in caplog.text
  assert _rows(path) == _ALL
  # The whole table, with LoRA of full tuning throughout.
  assert capsys.readouterr().out.count('100%') == 4

  compiled.clear()
  with caplog.at_level(python_logging.WARNING, 'absl'):
    assert main.run([*command, '--gin.NUM_SAMPLES=3']) == 0
  assert len(compiled) == 8
  assert '8 rows belong to another setting' in caplog.text


def test_another_batch_size_is_another_row(compiled, tmp_path):
  path = tmp_path / 'plan.json'
  command = [*_COMMAND, f'--output={path}', "--gin.TUNINGS='lora'"]
  assert main.run(command) == 0
  assert main.run([*command, '--gin.BATCH_SIZE=8']) == 0
  assert len(compiled) == 8
  assert {row['batch_size'] for row in json.loads(path.read_text())} == {8}


@pytest.mark.parametrize('text', ['{"a": 1}', 'not JSON', '[1]', '[{"a": 2}]'])
def test_a_file_of_something_else_is_not_overwritten(
  compiled, tmp_path, capsys, text
):
  path = tmp_path / 'mine.json'
  path.write_text(text)
  assert main.run([*_COMMAND, f'--output={path}']) == 2
  message = capsys.readouterr().err
  assert f'--output={path} exists and is not a file of perlhf plan' in message
  assert path.read_text() == text
  assert not compiled
