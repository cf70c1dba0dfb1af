"""Batches that do not fit are refused, with the line and what would fit."""

import pathlib

import pytest
import runs

from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.stages import batch_memory
from perlhf_jax.training import compiled_step
from perlhf_jax.training import memory
from perlhf_jax.training import partitioning

_MODEL = pathlib.Path(__file__).parents[1] / 'golden' / 'hf_t5_v1_1'
_SHORT = {'prompt': 'hello', 'response': 'there'}
_MIB = 2**20


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
  """Runs a command on lines that a machine with some MiB has no room for."""

  def run(command, rows, *more, free, compiles=False):
    monkeypatch.setattr(host_memory, 'free_bytes', lambda: int(free * _MIB))
    if not compiles:
      monkeypatch.setattr(
        compiled_step.CompiledStep, '_compile', lambda *_: pytest.fail()
      )
    source = runs.write_rows(tmp_path / 'in.jsonl', rows)
    target = tmp_path / 'out.jsonl'
    arguments = [command, f'--checkpoint={_MODEL}', f'--input={source}']
    assert main.run([*arguments, f'--output={target}', *more]) == 2
    assert not target.exists()
    message = capsys.readouterr().err
    assert message.count('perlhf: error:') == 1
    return message

  return run


def test_a_long_prompt_is_named(fails):
  rows = [_SHORT, _SHORT, {**_SHORT, 'prompt': 'x' * 25_000}, _SHORT]
  message = fails('score', rows, free=300)
  assert 'in.jsonl:3 has a prompt of 25,001 tokens; a batch of 32' in message
  assert 'GiB of memory' in message and '300 MiB are free' in message
  assert 'Give --prompt_length=8192 (cuts' in message
  message = fails('generate', rows, free=300)
  assert 'in.jsonl:3 has a prompt of 25,001 tokens' in message


def test_a_long_response_is_named(fails):
  rows = [_SHORT, {**_SHORT, 'response': 'x' * 9_000}]
  message = fails('score', rows, free=200)
  assert 'in.jsonl:2 has a response of 9,001 tokens' in message
  assert 'Give a file without that line or --batch_size=8.' in message


def test_a_longest_response_beyond_all_memory(fails):
  message = fails('generate', [_SHORT], '--max_length=65536', free=10)
  assert 'Responses have up to 65,536 tokens (--max_length)' in message
  assert 'Give --max_length=' in message
  assert 'A batch of 1 does not fit either' in message


@pytest.mark.parametrize(
  ('command', 'flags'), [('score', ()), ('generate', ['--max_length=4'])]
)
def test_what_the_compiler_says_counts(fails, command, flags):
  # More than the bound and less than it takes.
  rows = [{**_SHORT, 'prompt': 'x' * 500}, _SHORT]
  flags = ['--batch_size=2', *flags]
  message = fails(command, rows, *flags, free=13, compiles=True)
  assert 'in.jsonl:1 has a prompt of 501 tokens; a batch of 2 needs' in message
  assert 'at least' not in message
  assert 'Give --prompt_length=256 (cuts longer prompts' in message


def _bound(rows, tensor, prompt, response):
  return rows * (prompt + 10 * response)


def test_what_fits_is_found():
  mesh = partitioning.make_mesh()
  lengths = [
    batch_memory.line_length('prompt', 'f', {3: 90, 7: 95}, 80, 80, '-p={}'),
    batch_memory.Length(2, 'long responses', '-r={}'),
  ]
  with pytest.raises(errors.ConfigError) as caught:
    with batch_memory.must_fit(_bound, mesh, 16, lengths):
      error = memory.NotEnoughMemoryError('too large')
      error.needed_bytes, error.free_bytes = 3200 * _MIB, 1000 * _MIB
      raise error
  message = str(caught.value)
  # Twice the bound at each size: 4 rows need 800, and 20 tokens 1280.
  assert 'f:8 has a prompt of 95 tokens, cut to 80; a batch of 16' in message
  assert 'needs 3.1 GiB' in message and '1.0 GiB are free' in message
  assert message.endswith('Give -p=10 or --batch_size=4.')


def test_without_lines_nothing_is_asked():
  with batch_memory.must_fit(_bound, partitioning.make_mesh(), 4, []):
    pass
