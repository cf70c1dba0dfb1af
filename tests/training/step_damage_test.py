"""Whatever happens to a file of a step, nobody gets other values silently."""

import json
import logging
import math
import pathlib
import random
import shutil
import zlib

from etils import epath
import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files
from perlhf_jax.training import train_state

METADATA = {'kind': 'test', 'format_version': 3}
# Written after the digests, and read by nobody.
OF_ORBAX = {'_CHECKPOINT_METADATA', 'commit_success.txt'}
# The validation metric of each step: the newest is the best.
METRICS = {1: 0.1, 2: 0.7, 3: 0.9}


def _state(step):
  rng = np.random.default_rng(step)
  leaves = {
    name: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for name, shape in (('a', (64, 16)), ('b', (3,)))
  }
  return train_state.TrainState(
    jnp.asarray(step, jnp.int32), {'lora': leaves}, {'mu': leaves}
  )


def _save(folder, steps, **keep):
  manager = checkpoint_manager.CheckpointManager(folder, METADATA, **keep)
  for step in steps:
    manager.save(_state(step), METRICS.get(step))
  manager.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp('saved')) / 'run'
  _save(folder, METRICS)
  return folder


@pytest.fixture
def run(saved, tmp_path):
  return epath.Path(shutil.copytree(saved, tmp_path / 'run'))


def _files(step):
  step = pathlib.Path(step)
  return sorted(
    str(path.relative_to(step)) for path in step.rglob('*') if path.is_file()
  )


def _data_file(step):
  """The file that holds the arrays."""
  files = [
    pathlib.Path(step, name)
    for name in _files(step)
    if name.startswith('state/')
  ]
  return max(files, key=lambda file: file.stat().st_size)


def _listed(step):
  """Files whose contents anything depends on."""
  return [name for name in _files(step) if name not in OF_ORBAX]


def _flip(file, rng):
  data = bytearray(file.read_bytes())
  place = rng.randrange(8 * len(data))
  data[place // 8] ^= 1 << place % 8
  file.write_bytes(data)


def _other_than(data, rng):
  """As many bytes, others."""
  other = rng.randbytes(len(data))
  return other if other != data else bytes([data[0] ^ 1]) + data[1:]


DAMAGES = {
  'flipped': _flip,
  'truncated': lambda file, rng: file.write_bytes(
    file.read_bytes()[: rng.randrange(file.stat().st_size)]
  ),
  'zeroed': lambda file, rng: file.write_bytes(bytes(file.stat().st_size)),
  'emptied': lambda file, rng: file.write_bytes(b''),
  'removed': lambda file, rng: file.unlink(),
  'longer': lambda file, rng: file.write_bytes(file.read_bytes() + b'\0'),
  'foreign': lambda file, rng: file.write_bytes(
    _other_than(file.read_bytes(), rng)
  ),
}


def _read(step):
  return jax.tree.map(np.asarray, step_files.read_trainable(step))


def _assert_holds(step, number):
  expected = jax.tree.map(np.asarray, _state(number).trainable)
  found = _read(step)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('damage', DAMAGES)
def test_each_file_of_the_newest_step(saved, tmp_path, damage, caplog):
  newest = saved / 'checkpoints' / '3'
  names = _files(newest)
  # The arrays, what describes them, metadata, metrics and digests.
  assert len(names) >= 8
  for name in names:
    caplog.clear()
    run = epath.Path(shutil.copytree(saved, tmp_path / name.replace('/', '-')))
    file = pathlib.Path(run / 'checkpoints' / '3' / name)
    rng = random.Random(f'{damage} {name.split("/")[0]}')
    before = file.read_bytes()
    DAMAGES[damage](file, rng)
    if file.exists() and file.read_bytes() == before:
      continue
    step = step_files.intact_step(str(run))
    if name in OF_ORBAX:
      assert step.name == '3'
      _assert_holds(step, 3)
      continue
    assert step.name == '2', name
    _assert_holds(step, 2)
    assert (run / 'checkpoints' / '3.damaged').is_dir()
    assert not (run / 'checkpoints' / '3').exists()
    message = caplog.records[-1].getMessage()
    assert name.split('/')[-1] in message and '3.damaged' in message


def test_a_file_of_another_step_in_the_place_of_one(saved, tmp_path):
  """Files of arrays have names of their own; all that fits is swapped."""
  other, newest = (saved / 'checkpoints' / s for s in '23')
  same = set(_listed(other)) & set(_listed(newest))
  assert {'metadata/metadata', 'metrics/metrics', 'digests.json'} < same
  for name in [*same, 'state', 'metrics']:
    source, run = other / name, tmp_path / name.replace('/', '-')
    shutil.copytree(saved, run)
    target = run / 'checkpoints' / '3' / name
    if source.is_dir():
      shutil.rmtree(target)
      shutil.copytree(source, target)
    elif source.read_bytes() == target.read_bytes():
      continue
    else:
      shutil.copy(source, target)
    assert step_files.intact_step(str(run)).name == '2', name


def test_two_files_of_a_step_swapped(run):
  files = [
    run / 'checkpoints' / '3' / n for n in _listed(run / 'checkpoints/3')
  ]
  data = [file.read_bytes() for file in files if 'state' in str(file)]
  first, second, *_ = [f for f in files if 'state' in str(f)]
  first.write_bytes(data[1])
  second.write_bytes(data[0])
  assert step_files.intact_step(str(run)).name == '2'


def test_a_whole_step_under_another_number(run, caplog):
  steps = run / 'checkpoints'
  shutil.copytree(steps / '1', steps / '7')
  assert step_files.intact_step(str(run)).name == '3'
  assert 'it holds step 1' in caplog.text


def test_an_array_more_than_was_saved(run):
  (run / 'checkpoints/3/state/array_metadatas').mkdir(exist_ok=True)
  (run / 'checkpoints/3/state/array_metadatas/process_9').write_text('{}')
  assert step_files.intact_step(str(run)).name == '2'


def test_what_others_leave_in_a_step_is_no_damage(run):
  (run / 'checkpoints/3/eval.json').write_text('{}')
  (run / 'checkpoints/3/state/.nfs0001').write_text('')
  assert step_files.intact_step(str(run)).name == '3'


@pytest.mark.parametrize('name', ['13', '²', '013', '4.5', '\uff13', '-1', 'x'])
def test_a_folder_that_is_no_step(run, name):
  (run / 'checkpoints' / name).mkdir()
  assert step_files.newest_step(run).name == '3'
  assert step_files.intact_step(str(run)).name == '3'
  aside = run / 'checkpoints' / '13.damaged'
  assert aside.exists() == (name == '13')
  # A run goes on there.
  _save(run, [13])
  assert step_files.intact_step(str(run)).name == '13'


def test_a_file_in_the_place_of_a_step(run):
  (run / 'checkpoints' / '13').write_text('')
  assert step_files.intact_step(str(run)).name == '3'
  _save(run, [13])
  assert step_files.intact_step(str(run)).name == '13'


def test_the_best_that_is_damaged(run):
  best = str(run / 'checkpoints' / 'best')
  assert step_files.intact_step(best).name == '3'
  DAMAGES['removed'](run / 'checkpoints/3/metrics/metrics', None)
  # Looking moves nothing.
  assert step_files.find_step(best).name == '2'
  assert (run / 'checkpoints' / '3').exists()
  assert step_files.intact_step(best).name == '2'
  assert (run / 'checkpoints' / '3.damaged').exists()


def test_a_step_by_its_number_is_that_one_or_an_error(run):
  step = run / 'checkpoints' / '3'
  assert step_files.intact_step(str(step)) == step
  data = _data_file(step)
  _flip(data, random.Random(0))
  # Only whoever reads arrays can know.
  assert step_files.find_step(str(step)) == step
  with pytest.raises(errors.CheckpointError) as error:
    step_files.intact_step(str(step))
  assert str(step) in str(error.value) and data.name in str(error.value)
  assert step.exists()


def test_a_step_that_was_copied_out_is_checked(run, tmp_path):
  copy = tmp_path / 'mine'
  shutil.copytree(run / 'checkpoints' / '3', copy)
  assert step_files.intact_step(str(copy)) == epath.Path(copy)
  (copy / 'metadata' / 'metadata').unlink()
  for find in step_files.find_step, step_files.intact_step:
    with pytest.raises(errors.CheckpointError, match='metadata is missing'):
      find(str(copy))


def test_nothing_intact_is_one_error_each_time(run):
  steps = run / 'checkpoints'
  for step in '123':
    (steps / step / 'metadata' / 'metadata').write_text('{')
  for _ in range(2):
    for find in (
      step_files.intact_step,
      step_files.find_step,
      lambda path: step_files.newest_intact_step(epath.Path(path)),
    ):
      with pytest.raises(errors.CheckpointError) as error:
        find(str(run))
      assert all(f'{n} (metadata/metadata' in str(error.value) for n in '123')
  assert {p.name for p in steps.iterdir()} == {'1', '2', '3'}


def test_where_nothing_may_be_written(run, monkeypatch, caplog):
  (run / 'checkpoints/3/digests.json').unlink()

  def refuse(*_):
    raise PermissionError('read-only')

  monkeypatch.setattr(type(run), 'rename', refuse)
  for _ in range(2):
    assert step_files.intact_step(str(run)).name == '2'
  assert (run / 'checkpoints' / '3').exists()
  # Once.
  assert caplog.text.count('stays where it is') == 1


def test_two_damaged_steps_of_one_number(run):
  for _ in range(2):
    shutil.rmtree(run / 'checkpoints/3/state')
    assert step_files.intact_step(str(run)).name == '2'
    _save(run, [3])
  names = {p.name for p in (run / 'checkpoints').iterdir()}
  assert {'3.damaged', '3.damaged-2', '3', '2'} <= names


def test_a_step_of_an_earlier_version(saved, tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  run = epath.Path(shutil.copytree(saved, tmp_path / 'run'))
  for step in '23':
    (run / 'checkpoints' / step / 'digests.json').unlink()
    (run / 'checkpoints' / step / 'metadata/metadata').write_text('{"a": 1}')
  for _ in range(2):
    step = step_files.intact_step(str(run))
    assert step.name == '3'
    _assert_holds(step, 3)
  assert caplog.text.count('without digests') == 1
  # What can be seen without digests is seen.
  (run / 'checkpoints/3/metadata/metadata').write_text('{"a"')
  assert step_files.intact_step(str(run)).name == '2'
  # And of the rest, no other library speaks.
  for file in pathlib.Path(run, 'checkpoints/2/state').rglob('*'):
    if file.is_file():
      file.write_bytes(bytes(file.stat().st_size))
  with pytest.raises(errors.CheckpointError, match='cannot be read'):
    step_files.read_trainable(step_files.intact_step(str(run)))


def test_the_check_of_contents_can_be_switched_off(run, monkeypatch):
  data = _data_file(run / 'checkpoints' / '3')
  _flip(data, random.Random(1))
  monkeypatch.setenv('PERLHF_VERIFY', 'off')
  assert step_files.intact_step(str(run)).name == '3'
  monkeypatch.setenv('PERLHF_VERIFY', 'no')
  with pytest.raises(errors.ConfigError, match="PERLHF_VERIFY is 'no'"):
    step_files.intact_step(str(run))
  monkeypatch.delenv('PERLHF_VERIFY')
  assert step_files.intact_step(str(run)).name == '2'


def test_retention_counts_whole_steps_only(run):
  steps = run / 'checkpoints'
  # Of 1, 2 and 3, all but the oldest are damaged while the run goes on.
  manager = checkpoint_manager.CheckpointManager(run, METADATA, keep_latest=1)
  for step in '23':
    shutil.rmtree(steps / step / 'state')
  manager.save(_state(4), 0.0)
  manager.save(_state(5), 0.0)
  manager.close()
  names = {p.name for p in steps.iterdir()}
  # The best of the whole ones, the newest beside it; and what may be looked at.
  assert names == {'1', '5', '2', '3'}


def test_two_steps_are_kept_beside_the_best(tmp_path):
  folder = epath.Path(tmp_path)
  manager = checkpoint_manager.CheckpointManager(folder, METADATA)
  for step in range(1, 7):
    manager.save(_state(step), float(step))
  manager.close()
  names = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert names == {'4', '5', '6'}


def test_an_unfinished_removal_is_finished(run):
  shutil.copytree(run / 'checkpoints/1', run / 'checkpoints/0.removed')
  _save(run, [4])
  assert not (run / 'checkpoints/0.removed').exists()


def test_digests_are_those_of_the_files(saved):
  step = saved / 'checkpoints' / '3'
  fields = json.loads((step / 'digests.json').read_text())
  assert fields['step'] == 3
  inside = [n for n in _listed(step) if '/' in n]
  assert sorted(fields['files']) == inside
  for name, entry in fields['files'].items():
    data = (step / name).read_bytes()
    assert entry['bytes'] == len(data)
    digest = f'{_crc32c(data):08x}{_sum_of_words(data):016x}'
    assert entry['blocks'] == ([digest] if data else [])


def _crc32c(data):
  """Bit by bit, by its polynomial."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def _sum_of_words(data):
  total = 0
  for start in range(0, len(data), 8):
    total += int.from_bytes(data[start : start + 8], 'little')
  return total % 2**64


def test_files_that_end_with_their_own_checksum_are_told_apart(saved):
  """All of them have one CRC-32C, for which alone they would be the same."""
  manifests = []
  for step in '23':
    folder = saved / 'checkpoints' / step
    digests = step_digests.read(folder)
    manifests.append(digests.blocks['state/manifest.ocdbt'][0])
  assert manifests[0][:8] == manifests[1][:8]
  assert manifests[0] != manifests[1]


def test_blocks_share_the_reading_out(run, monkeypatch):
  """Each process reads its blocks; together they see all damage."""
  monkeypatch.setattr(step_digests, '_BLOCK_BYTES', 100)
  step = run / 'checkpoints' / '3'
  step_digests.write(step, 3)
  digests = step_digests.read(step)
  counts = {n: math.ceil(s / 100) for n, s in digests.sizes.items()}
  assert {n: len(b) for n, b in digests.blocks.items()} == counts
  rng = random.Random(2)
  for name in digests.sizes:
    file = step / name
    before = file.read_bytes()
    if not before:
      continue
    _flip(file, rng)
    found = [
      step_digests.find_damage(
        step, digests, contents=True, process=i, processes=3
      )
      for i in range(3)
    ]
    assert found.count(None) == 2
    assert f'{name} was changed' in found
    file.write_bytes(before)
  assert step_damage.damage_of(step, contents=True) is None


def test_a_process_digests_what_it_wrote(run, monkeypatch):
  """The first process takes these, and reads the rest alone."""
  step = run / 'checkpoints' / '3'
  expected = step_digests.read(step)
  step_digests.write_part(step, 3, step / 'state', 0)
  read = []
  extend = google_crc32c.extend

  def count(digest, data):
    read.append(len(data))
    return extend(digest, data)

  monkeypatch.setattr(google_crc32c, 'extend', count)
  step_digests.write(step, 3)
  own = [n for n in expected.sizes if n.startswith('state/ocdbt.process_0/')]
  assert own
  assert sum(read) == sum(
    size for name, size in expected.sizes.items() if name not in own
  )
  assert step_digests.read(step) == expected
  assert not list(step.glob('digests.process_*'))


@pytest.mark.parametrize(
  'text',
  [
    '',
    '[]',
    '{}',
    'null',
    '{"step": 3, "block_bytes": 67108864, "files": []}',
    '{"step": 3, "block_bytes": 67108864, "files": {"a": 1}}',
    '{"step": 3, "block_bytes": 67108864, "files": {"a": {"bytes": "1"}}}',
    '{"step": 3, "block_bytes": 67108864,'
    ' "files": {"../a": {"bytes": 1e99, "blocks": []}}}',
    '{"step": 3, "block_bytes": 67108864, "files":'
    f'{{"a": {{"bytes": {10**30}, "blocks": []}}}}}}',
    '[' * 100_000,
    '\ud800'.encode('utf-8', 'surrogatepass').decode('latin-1'),
  ],
)
def test_digests_that_are_none(run, text, caplog):
  (run / 'checkpoints/3/digests.json').write_text(text)
  assert step_files.intact_step(str(run)).name == '2'
  assert 'digests.json was changed' in caplog.text


def test_bits_of_the_arrays(saved, tmp_path):
  """Single bits all over the arrays' files, as zlib knows them too."""
  run = epath.Path(shutil.copytree(saved, tmp_path / 'run'))
  step = run / 'checkpoints' / '3'
  rng = random.Random(3)
  for file in sorted(pathlib.Path(step, 'state').rglob('*')):
    if not file.is_file() or not file.stat().st_size:
      continue
    before = file.read_bytes()
    for _ in range(20):
      _flip(file, rng)
      assert zlib.crc32(file.read_bytes()) != zlib.crc32(before)
      damage = step_damage.damage_of(step, contents=True)
      assert file.name in damage
      file.write_bytes(before)
  assert step_damage.damage_of(step, contents=True) is None
