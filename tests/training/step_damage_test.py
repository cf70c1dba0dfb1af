"""Whatever happens to a file of a step, nobody gets other values silently."""

import json
import logging
import pathlib
import random
import shutil

import array_reference
from etils import epath
import flipped_bits
import numpy as np
import pytest
import small_steps

from perlhf_jax.core import errors
from perlhf_jax.training import array_digests
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files

# Written after the digests, and read by nobody.
OF_ORBAX = {'_CHECKPOINT_METADATA', 'commit_success.txt'}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp('saved')) / 'run'
  small_steps.save(folder, small_steps.METRICS)
  return folder


@pytest.fixture
def run(saved, tmp_path):
  return epath.Path(shutil.copytree(saved, tmp_path / 'run'))


def _files(step):
  step = pathlib.Path(step)
  return sorted(
    str(path.relative_to(step)) for path in step.rglob('*') if path.is_file()
  )


def _listed(step):
  """Files whose contents anything depends on."""
  return [name for name in _files(step) if name not in OF_ORBAX]


def _other_than(data, rng):
  """As many bytes, others."""
  other = rng.randbytes(len(data))
  return other if other != data else bytes([data[0] ^ 1]) + data[1:]


DAMAGES = {
  'flipped': flipped_bits.flip,
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
    step = small_steps.intact(run)
    if name in OF_ORBAX or (step.name == '3' and '/d/' in name):
      # Bytes of arrays' files that nobody needs may be others.
      assert name in OF_ORBAX or damage in ('flipped', 'zeroed', 'foreign')
      assert step.name == '3'
      small_steps.assert_holds(step, 3)
      continue
    assert step.name == '2', name
    small_steps.assert_holds(step, 2)
    assert (run / 'checkpoints' / '3.damaged').is_dir()
    assert not (run / 'checkpoints' / '3').exists()
    message = caplog.records[-1].getMessage()
    of_arrays = '/d/' in name and 'arrays cannot be read' in message
    of_one = '/d/' in name and 'the array ' in message
    assert name.split('/')[-1] in message or of_arrays or of_one
    assert '3.damaged' in message


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
    assert small_steps.intact(run).name == '2', name


def test_two_files_of_a_step_swapped(run):
  files = [
    run / 'checkpoints' / '3' / n for n in _listed(run / 'checkpoints/3')
  ]
  data = [file.read_bytes() for file in files if 'state' in str(file)]
  first, second, *_ = [f for f in files if 'state' in str(f)]
  first.write_bytes(data[1])
  second.write_bytes(data[0])
  assert small_steps.intact(run).name == '2'


def test_a_whole_step_under_another_number(run, caplog):
  steps = run / 'checkpoints'
  shutil.copytree(steps / '1', steps / '7')
  assert small_steps.intact(run).name == '3'
  assert 'it holds step 1' in caplog.text


def test_an_array_more_than_was_saved(run):
  (run / 'checkpoints/3/state/array_metadatas').mkdir(exist_ok=True)
  (run / 'checkpoints/3/state/array_metadatas/process_9').write_text('{}')
  assert small_steps.intact(run).name == '2'


def test_what_others_leave_in_a_step_is_no_damage(run):
  (run / 'checkpoints/3/eval.json').write_text('{}')
  (run / 'checkpoints/3/state/.nfs0001').write_text('')
  assert small_steps.intact(run).name == '3'


@pytest.mark.parametrize('name', ['13', '²', '013', '4.5', '\uff13', '-1', 'x'])
def test_a_folder_that_is_no_step(run, name):
  (run / 'checkpoints' / name).mkdir()
  assert step_files.newest_step(run).name == '3'
  assert small_steps.intact(run).name == '3'
  aside = run / 'checkpoints' / '13.damaged'
  assert aside.exists() == (name == '13')
  # A run goes on there.
  small_steps.save(run, [13])
  assert small_steps.intact(run).name == '13'


def test_a_file_in_the_place_of_a_step(run):
  (run / 'checkpoints' / '13').write_text('')
  assert small_steps.intact(run).name == '3'
  small_steps.save(run, [13])
  assert small_steps.intact(run).name == '13'


def test_the_best_that_is_damaged(run):
  best = str(run / 'checkpoints' / 'best')
  assert small_steps.intact(best).name == '3'
  DAMAGES['removed'](run / 'checkpoints/3/metrics/metrics', None)
  # Looking moves nothing.
  assert step_files.find_step(best).name == '2'
  assert (run / 'checkpoints' / '3').exists()
  assert small_steps.intact(best).name == '2'
  assert (run / 'checkpoints' / '3.damaged').exists()


def test_a_step_by_its_number_is_that_one_or_an_error(run):
  step = run / 'checkpoints' / '3'
  assert small_steps.intact(step) == step
  flipped_bits.flip_a_value(step, 'trainable/lora/a')
  # Only whoever reads arrays can know.
  assert step_files.find_step(str(step)) == step
  with pytest.raises(errors.CheckpointError) as error:
    small_steps.intact(step)
  message = str(error.value)
  assert str(step) in message and 'the array trainable/lora/a' in message
  assert step.exists()


def test_a_step_that_was_copied_out_is_checked(run, tmp_path):
  copy = tmp_path / 'mine'
  shutil.copytree(run / 'checkpoints' / '3', copy)
  assert small_steps.intact(copy) == epath.Path(copy)
  (copy / 'metadata' / 'metadata').unlink()
  for find in step_files.find_step, small_steps.intact:
    with pytest.raises(errors.CheckpointError, match='metadata is missing'):
      find(str(copy))


def test_nothing_intact_is_one_error_each_time(run):
  steps = run / 'checkpoints'
  for step in '123':
    (steps / step / 'metadata' / 'metadata').write_text('{')
  for _ in range(2):
    for find in (
      small_steps.intact,
      step_files.find_step,
      lambda path: step_files.newest_whole_step(epath.Path(path)),
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
    assert small_steps.intact(run).name == '2'
  assert (run / 'checkpoints' / '3').exists()
  # Once.
  assert caplog.text.count('stays where it is') == 1


def test_two_damaged_steps_of_one_number(run):
  for _ in range(2):
    shutil.rmtree(run / 'checkpoints/3/state')
    assert small_steps.intact(run).name == '2'
    small_steps.save(run, [3])
  names = {p.name for p in (run / 'checkpoints').iterdir()}
  assert {'3.damaged', '3.damaged-2', '3', '2'} <= names


def test_a_step_of_an_earlier_version(saved, tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  run = epath.Path(shutil.copytree(saved, tmp_path / 'run'))
  for step in '23':
    (run / 'checkpoints' / step / 'digests.json').unlink()
    (run / 'checkpoints' / step / 'metadata/metadata').write_text('{"a": 1}')
  for _ in range(2):
    step = small_steps.intact(run)
    assert step.name == '3'
    small_steps.assert_holds(step, 3)
  assert caplog.text.count('without digests') == 1
  # What can be seen without digests is seen.
  (run / 'checkpoints/3/metadata/metadata').write_text('{"a"')
  assert small_steps.intact(run).name == '2'
  # And of the rest, no other library speaks.
  for file in pathlib.Path(run, 'checkpoints/2/state').rglob('*'):
    if file.is_file():
      file.write_bytes(bytes(file.stat().st_size))
  with pytest.raises(errors.CheckpointError, match='cannot be read'):
    small_steps.intact(run)


def test_the_check_of_contents_can_be_switched_off(run, monkeypatch):
  flipped_bits.flip_a_value(run / 'checkpoints' / '3', 'trainable/lora/a')
  monkeypatch.setenv('PERLHF_VERIFY', 'off')
  assert small_steps.intact(run).name == '3'
  monkeypatch.setenv('PERLHF_VERIFY', 'no')
  with pytest.raises(errors.ConfigError, match="PERLHF_VERIFY is 'no'"):
    small_steps.intact(run)
  monkeypatch.delenv('PERLHF_VERIFY')
  assert small_steps.intact(run).name == '2'


def test_retention_counts_whole_steps_only(run):
  steps = run / 'checkpoints'
  # Of 1, 2 and 3, all but the oldest are damaged while the run goes on.
  manager = checkpoint_manager.CheckpointManager(
    run, small_steps.METADATA, keep_latest=1
  )
  for step in '23':
    shutil.rmtree(steps / step / 'state')
  manager.save(small_steps.state(4), 0.0)
  manager.save(small_steps.state(5), 0.0)
  manager.close()
  names = {p.name for p in steps.iterdir()}
  # The best of the whole ones, the newest beside it; and what may be looked at.
  assert names == {'1', '5', '2', '3'}


def test_two_steps_are_kept_beside_the_best(tmp_path):
  folder = epath.Path(tmp_path)
  manager = checkpoint_manager.CheckpointManager(folder, small_steps.METADATA)
  for step in range(1, 7):
    manager.save(small_steps.state(step), float(step))
  manager.close()
  names = {p.name for p in (folder / 'checkpoints').iterdir()}
  assert names == {'4', '5', '6'}


def test_an_unfinished_removal_is_finished(run):
  shutil.copytree(run / 'checkpoints/1', run / 'checkpoints/0.removed')
  small_steps.save(run, [4])
  assert not (run / 'checkpoints/0.removed').exists()


def test_digests_are_those_of_the_files_and_arrays(saved):
  step = saved / 'checkpoints' / '3'
  fields = json.loads((step / 'digests.json').read_text())
  assert fields['step'] == 3
  inside = [n for n in _listed(step) if '/' in n]
  assert sorted(fields['files']) == inside
  of_arrays = {n for n in inside if '/d/' in n}
  assert of_arrays == {
    str(file.relative_to(step)) for file in flipped_bits.data_files(step)
  }
  for name, entry in fields['files'].items():
    data = (step / name).read_bytes()
    assert entry['bytes'] == len(data)
    digest = f'{_crc32c(data):08x}{_sum_of_words(data):016x}'
    assert entry.get('digest') == (None if name in of_arrays else digest)
  leaves = array_digests.by_name(small_steps.state(3))
  assert set(leaves) == {
    'step',
    *(f'{t}/{n}' for t in ('trainable/lora', 'opt_state/mu') for n in 'ab'),
  }
  assert fields['arrays'] == {
    name: array_reference.digest(np.asarray(leaf))
    for name, leaf in leaves.items()
  }


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
    manifests.append(digests.files['state/manifest.ocdbt'])
  assert manifests[0][:8] == manifests[1][:8]
  assert manifests[0] != manifests[1]


@pytest.mark.parametrize(
  'text',
  [
    '',
    '[]',
    '{}',
    'null',
    '{"step": 3, "files": [], "arrays": {}}',
    '{"step": 3, "files": {}}',
    '{"step": 3, "files": {}, "arrays": {"a": 1}}',
    '{"step": 3, "files": {"a": 1}, "arrays": {}}',
    '{"step": 3, "files": {"a": {"bytes": 1}}, "arrays": {}}',
    '{"step": 3, "files": {"a": {"bytes": "1"}}, "arrays": {}}',
    '{"step": 3, "files": {"../a": {"bytes": 1e99, "digest": ""}},'
    ' "arrays": {}}',
    '[' * 100_000,
    '\ud800'.encode('utf-8', 'surrogatepass').decode('latin-1'),
  ],
)
def test_digests_that_are_none(run, text, caplog):
  (run / 'checkpoints/3/digests.json').write_text(text)
  assert small_steps.intact(run).name == '2'
  assert 'digests.json was changed' in caplog.text
