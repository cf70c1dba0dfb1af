"""Bits of arrays that change are found by whoever reads the arrays."""

import pathlib
import random
import shutil

from etils import epath
import flipped_bits
import orbax.checkpoint as ocp
import pytest
import small_steps

from perlhf_jax.core import errors
from perlhf_jax.training import array_verification
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp('saved')) / 'run'
  small_steps.save(folder, small_steps.METRICS)
  return folder


@pytest.fixture
def run(saved, tmp_path):
  return epath.Path(shutil.copytree(saved, tmp_path / 'run'))


def test_bits_of_the_arrays(saved, tmp_path):
  """Single bits all over the arrays' files: found, or of no consequence."""
  run = epath.Path(shutil.copytree(saved, tmp_path / 'run'))
  step = run / 'checkpoints' / '3'
  digests = step_digests.read(step)
  rng = random.Random(3)
  found = 0
  for file in sorted(pathlib.Path(step, 'state').rglob('*')):
    if not file.is_file() or not file.stat().st_size:
      continue
    before = file.read_bytes()
    for _ in range(12):
      flipped_bits.flip(file, rng)
      if 'd' not in file.parts:
        assert file.name in step_damage.damage_of(step)
      else:
        assert step_damage.damage_of(step) is None
        verified = array_verification.find_damage(step, digests)
        try:
          small_steps.assert_same_as(small_steps.whole(step), 3)
          assert verified is None
        except step_damage.DamagedError as error:
          assert verified is not None
          assert error.step == step and error.damage in str(error)
          found += 1
      file.write_bytes(before)
  # Most bytes of these files are values.
  assert found > 12
  assert array_verification.find_damage(step, digests) is None


def test_a_bit_that_decodes_is_found_by_its_array(run):
  flipped_bits.flip_a_value(run / 'checkpoints' / '3', 'opt_state/mu/a')
  step = run / 'checkpoints' / '3'
  damage = array_verification.find_damage(step, step_digests.read(step))
  assert 'the array opt_state/mu/a was changed' in damage
  # The weights are intact, for whoever reads them alone.
  assert step_files.read_intact(str(run), small_steps.read)['lora'].keys() == {
    'a',
    'b',
  }
  assert step.exists()
  assert small_steps.intact(run).name == '2'


def test_errors_that_damage_does_not_cause(run, monkeypatch):
  """A disk that refuses, or memory that ends, makes no step a damaged one."""
  for error in (
    PermissionError(13, 'no'),
    ValueError('PERMISSION_DENIED: Error opening "x"'),
    ValueError('UNAVAILABLE: try again'),
    MemoryError(),
  ):

    def fail(*_, error=error, **__):
      raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', fail)
    with pytest.raises((errors.CheckpointError, MemoryError)) as raised:
      step_files.read_intact(str(run), step_files.read_trainable)
    assert not isinstance(raised.value, step_damage.DamagedError)
  assert (run / 'checkpoints' / '3').exists()


def test_nothing_is_set_aside_before_a_step_is_read(run):
  steps = run / 'checkpoints'
  for name in '123':
    flipped_bits.flip_a_value(steps / name, 'trainable/lora/a')
  for _ in range(2):
    with pytest.raises(errors.CheckpointError) as error:
      small_steps.intact(run)
    assert all(f'{n} (the array trainable' in str(error.value) for n in '123')
  assert {p.name for p in steps.iterdir()} == {'1', '2', '3'}


def test_digests_of_blocks_are_of_an_earlier_version(run, caplog):
  step = run / 'checkpoints' / '3'
  (step / 'digests.json').write_text(
    '{"step": 3, "block_bytes": 67108864, "files": {}}'
  )
  assert small_steps.intact(run).name == '3'
  assert 'without digests of its arrays' in caplog.text
