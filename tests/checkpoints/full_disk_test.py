"""A disk that is full half way through `perlhf convert`."""

import errno
import pathlib
import shutil

import folders
import pytest
import runs

from perlhf_jax.cli import main
from perlhf_jax.interop import t5x_write

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/hf_t5_v1_1'
# What TensorStore says, and of what class.
_TENSORSTORE = ValueError(
  'RESOURCE_EXHAUSTED: Error writing "target.encoder.encoder_norm.scale/0": '
  f'Failed to write to file [OS error {errno.ENOSPC}: ENOSPC No space left on '
  'device]'
)


@pytest.fixture(scope='module')
def reward(tmp_path_factory):
  """A reward model with LoRA, and the base that it stands on."""
  folder = tmp_path_factory.mktemp('reward')
  base = shutil.copytree(_GOLDEN, folder / 'base')
  arguments = runs.arguments(
    *('train_reward', 'attention', folder / 'rm', 'demo_rm'),
    *('--gin.MODEL=None', '--gin.VOCABULARY=None'),
    start=base,
    steps=2,
  )
  assert main.run(arguments) == 0
  return folder / 'rm'


def _fill(monkeypatch, folder):
  """Makes the third file in a folder one that has no room; counts files."""
  opened = []
  open_, write = pathlib.Path.open, t5x_write._write_tensor

  def full(self, mode='r', *arguments, **keywords):
    if 'w' in mode and self.is_relative_to(folder):
      opened.append(self)
      if len(opened) == 3:
        raise OSError(errno.ENOSPC, 'No space left on device', str(self))
    return open_(self, mode, *arguments, **keywords)

  def full_tensor(*arguments, **keywords):
    opened.append(None)
    if len(opened) == 3:
      raise _TENSORSTORE
    return write(*arguments, **keywords)

  monkeypatch.setattr(pathlib.Path, 'open', full)
  monkeypatch.setattr(t5x_write, '_write_tensor', full_tensor)
  return opened


@pytest.mark.parametrize('to', ['hf', 'peft', 't5x'])
def test_nothing_is_left_and_a_second_try_succeeds(
  to, reward, tmp_path, monkeypatch, capfd
):
  source = _GOLDEN if to == 't5x' else reward
  before = folders.files(source)
  place = tmp_path / 'place'
  place.mkdir()
  target = place / 'out'
  flags = ['convert', f'--source={source}', f'--target={target}', f'--to={to}']
  with monkeypatch.context() as patched:
    opened = _fill(patched, place)
    capfd.readouterr()
    assert main.run(flags) == 2
    assert len(opened) == 3
  message = capfd.readouterr().err
  assert 'Traceback' not in message
  assert message.count('cannot be written') == 1
  assert f'{target}' in message and 'No space left on device' in message
  # Neither a target nor a part of one.
  assert not list(place.iterdir())
  assert folders.files(source) == before
  assert main.run(flags) == 0
  fresh = [
    f'--target={tmp_path / "fresh"}' if 'target' in x else x for x in flags
  ]
  assert main.run(fresh) == 0
  assert folders.files(target) == folders.files(tmp_path / 'fresh')
  assert main.run(['inspect', f'--checkpoint={target}']) == 0
  assert [entry.name for entry in place.iterdir()] == ['out']


@pytest.mark.parametrize('to', ['hf', 'peft'])
def test_what_is_there_stays(to, reward, tmp_path, monkeypatch, capfd):
  place = tmp_path / 'place'
  target = place / 'out'
  flags = ['convert', f'--source={reward}', f'--target={target}', f'--to={to}']
  assert main.run(flags) == 0
  before = folders.files(target)
  with monkeypatch.context() as patched:
    _fill(patched, place)
    assert main.run([*flags, '--overwrite', '--dtype=bfloat16']) == 2
  assert 'No space left on device' in capfd.readouterr().err
  assert folders.files(target) == before
  assert [entry.name for entry in place.iterdir()] == ['out']
  assert main.run([*flags, '--overwrite', '--dtype=bfloat16']) == 0
  assert folders.files(target) != before
