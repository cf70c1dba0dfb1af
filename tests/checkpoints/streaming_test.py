"""`perlhf convert` of a whole model: one array at a time, and what it says."""

import dataclasses
import json
import logging as python_logging
import pathlib
import shutil
import time
import types
import weakref

import ml_dtypes
import numpy as np
import pytest
import ram_bucket
from safetensors import numpy as safetensors_numpy
import tensorstore
import tiny_models
import tiny_pali

from perlhf_jax.cli import main
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf_names
from perlhf_jax.interop import output
from perlhf_jax.interop import pali_directory
from perlhf_jax.interop import stored
from perlhf_jax.interop import t5x
from perlhf_jax.interop import t5x_read
from perlhf_jax.interop import write_progress
from perlhf_jax.training import placement

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_HF = _GOLDEN / 'hf_t5_v1_1'
_SOURCES = {
  'hf': _HF,
  't5x': _GOLDEN / 't5x_legacy_v1_1',
  'scanned': _GOLDEN / 't5x_legacy_umt5',
}
_BYTES = ('--vocabulary=byte', '--extra_ids=3')


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Directories by what they are of, a PaLI's among them."""
  config = dataclasses.replace(tiny_pali.CONFIG, vocab_size=384)
  contents = pali_directory.contents(
    tiny_models.params(config),
    config,
    vocabulary=vocabularies.to_dict(vocabularies.byte_vocabulary(125)),
  )
  pali = tmp_path_factory.mktemp('source') / 'pali'
  output.write(contents, pali)
  return _SOURCES | {'pali': pali}


def _convert(source, target, to, *flags):
  flags = (f'--source={source}', f'--target={target}', f'--to={to}', *flags)
  assert main.run(['convert', *flags]) == 0


def _tensors(folder):
  """Every tensor of a directory of safetensors."""
  files = sorted(folder.rglob('*.safetensors'))
  return {
    f'{file.parent.relative_to(folder)}/{name}': array
    for file in files
    for name, array in safetensors_numpy.load_file(file).items()
  }


def _rounded(source, folder):
  """A Hugging Face directory whose every tensor is bfloat16."""
  shutil.copytree(source, folder)
  for file in folder.rglob('*.safetensors'):
    tensors = safetensors_numpy.load_file(file)
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    safetensors_numpy.save_file(rounded, file, metadata={'format': 'pt'})
  return folder


def _t5x_tensor(folder, name):
  """A tensor that TensorStore reads, in the dtype that it is stored in."""
  (step,) = folder.glob('checkpoint_*')
  path = f'{step / "target."}{name.replace("/", ".")}/'
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': path}}
  return tensorstore.open(spec).result().read().result()


def _wait_until_gone(arrays, next_tensor):
  """TensorStore's threads may let go of an array a moment after its writing."""
  for _ in range(100):
    if not [each for each in arrays if each() is not None]:
      return
    time.sleep(0.01)
  raise AssertionError(f'an array was held when {next_tensor} was read')


@pytest.mark.parametrize(
  ('source', 'to'),
  [('hf', 't5x'), ('hf', 'hf'), ('pali', 'hf'), ('t5x', 'hf'), ('t5x', 't5x')],
)
def test_one_array_at_a_time_is_in_memory(
  source, to, sources, tmp_path, monkeypatch
):
  read = stored.Stored.__array__
  live, names = [], []

  def watched(self, *arguments, **keywords):
    # What is read by a function of another one is the same array.
    outermost = not watched.inside
    if outermost:
      _wait_until_gone(live, self.tensor)
    watched.inside += 1
    array = read(self, *arguments, **keywords)
    watched.inside -= 1
    live.append(weakref.ref(array))
    if outermost:
      names.append(self.tensor)
    return array

  watched.inside = 0
  monkeypatch.setattr(stored.Stored, '__array__', watched)
  # Nor does anything go to a device.
  monkeypatch.delattr(placement, 'put')
  flags = _BYTES if source == 't5x' else ()
  _convert(sources[source], tmp_path / 'out', to, *flags)
  assert len(names) == len(set(names)) > 20


def test_no_block_of_layers_is_read_twice(tmp_path, monkeypatch):
  read = t5x_read.Reader._read
  names = []

  def watched(self, tensor, index):
    names.append(tensor)
    return read(self, tensor, index)

  monkeypatch.setattr(t5x_read.Reader, '_read', watched)
  # Hugging Face's files have every layer's tensors side by side.
  _convert(_SOURCES['scanned'], tmp_path / 'out', 'hf', *_BYTES)
  assert len(names) == len(set(names))
  config = t5x.load_config(_SOURCES['scanned'])
  assert (
    len(names)
    < len(hf_names.entries(config))
    == len(_tensors(tmp_path / 'out'))
  )


@pytest.mark.parametrize('to', ['hf', 't5x'])
def test_bfloat16_stays_what_it_is(to, tmp_path):
  source = _rounded(_HF, tmp_path / 'source')
  _convert(source, tmp_path / 'out', to)
  wanted = {
    name.removeprefix('./'): array for name, array in _tensors(source).items()
  }
  if to == 'hf':
    config = json.loads((tmp_path / 'out/config.json').read_text())
    assert config['torch_dtype'] == 'bfloat16'
    found = _tensors(tmp_path / 'out')
    found = {name.removeprefix('./'): array for name, array in found.items()}
  else:
    entries = hf_names.entries(t5x.load_config(tmp_path / 'out'))
    found = {
      entry.tensor: _t5x_tensor(tmp_path / 'out', entry.path)
      for entry in entries
    }
    found = {
      entry.tensor: found[entry.tensor].T
      if entry.transposed
      else found[entry.tensor]
      for entry in entries
    }
  assert found.keys() == wanted.keys() and len(found) > 20
  for name, array in wanted.items():
    assert found[name].dtype == array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
      found[name].view(np.uint16), array.view(np.uint16), err_msg=name
    )
  # And back, by the flag or without one.
  for dtype, flags in (('float32', ('--dtype=float32',)), ('bfloat16', ())):
    again = tmp_path / dtype
    vocabulary = () if to == 'hf' else ('--vocabulary=byte', '--extra_ids=125')
    _convert(tmp_path / 'out', again, 'hf', *flags, *vocabulary)
    for name, array in _tensors(again).items():
      assert array.dtype.name == dtype
      np.testing.assert_array_equal(
        array, wanted[name.removeprefix('./')].astype(array.dtype)
      )


def test_float32_is_rounded_on_demand_only(tmp_path):
  name = 'decoder/logits_dense/kernel'
  _convert(_HF, tmp_path / 'exact', 't5x')
  _convert(_HF, tmp_path / 'rounded', 't5x', '--dtype=bfloat16')
  exact, rounded = (
    _t5x_tensor(tmp_path / folder, name) for folder in ('exact', 'rounded')
  )
  assert exact.dtype == np.float32 and rounded.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(exact.astype(rounded.dtype), rounded)
  assert (exact != rounded.astype(np.float32)).any()


def test_all_parts_of_a_pali_stay_in_bfloat16(sources, tmp_path):
  source = _rounded(sources['pali'], tmp_path / 'source')
  _convert(source, tmp_path / 'out', 'hf')
  found, wanted = _tensors(tmp_path / 'out'), _tensors(source)
  for name, array in found.items():
    assert array.dtype == ml_dtypes.bfloat16, name
    np.testing.assert_array_equal(array, wanted[name], err_msg=name)
  assert found.keys() == wanted.keys() and './weight' in found


@pytest.mark.parametrize('to', ['hf', 't5x'])
def test_progress_is_shown(to, tmp_path, monkeypatch, caplog):
  caplog.set_level(python_logging.INFO)
  _convert(_HF, tmp_path / 'quick', to)
  assert 'arrays' not in caplog.text
  monkeypatch.setattr(write_progress, 'SECONDS_BETWEEN_LINES', 0.0)
  _convert(_HF, tmp_path / 'slow', to)
  lines = [line for line in caplog.text.splitlines() if 'arrays' in line]
  count = len(_tensors(_HF))
  assert len(lines) == count
  for number, line in enumerate(lines, 1):
    assert str(tmp_path / 'slow') in line and f': {number}/{count} arr' in line
    assert 'GB | ' in line and 'MB/s, ETA ' in line
  # Of 23,664 numbers of four bytes.
  assert '0.00/0.00 GB' in lines[-1]


def test_lines_come_at_a_sensible_rate(monkeypatch, caplog):
  caplog.set_level(python_logging.INFO)
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(write_progress.time, 'monotonic', lambda: now.seconds)
  with write_progress.Progress('out', 25, 25 * 10**9) as progress:
    for _ in range(25):
      now.seconds += 1
      progress.add(10**9)
  assert [record.getMessage() for record in caplog.records] == [
    'out: 10/25 arrays, 10.00/25.00 GB | 1000 MB/s, ETA 0:15',
    'out: 20/25 arrays, 20.00/25.00 GB | 1000 MB/s, ETA 0:05',
    'out: 25/25 arrays, 25.00/25.00 GB | 1000 MB/s, ETA 0:00',
  ]


def test_what_is_damaged_in_a_bucket_is_named(tmp_path, monkeypatch, capfd):
  ram_bucket.mount(monkeypatch, tmp_path)
  address = f'ram://bucket{tmp_path}/t5'
  ram_bucket.upload(_HF, address)
  read = stored.Stored.__array__

  def lost(self, *arguments, **keywords):
    if self.tensor == 'lm_head.weight':
      for file in tmp_path.rglob('*.safetensors'):
        file.unlink()
    return read(self, *arguments, **keywords)

  monkeypatch.setattr(stored.Stored, '__array__', lost)
  flags = (f'--source={address}', f'--target={tmp_path / "out"}', '--to=hf')
  assert main.run(['convert', *flags]) == 2
  message = capfd.readouterr().err
  assert f' is a copy of {address}; correct' in message
  assert not list(tmp_path.glob('*out*'))


def test_bfloat16_only_if_all_of_it_is():
  half, full = (
    stored.Stored((), dtype, 'a', lambda: np.zeros(()))
    for dtype in ('bfloat16', 'float32')
  )
  assert stored.dtype_of([half, half]) == 'bfloat16'
  assert stored.dtype_of([half, full]) == 'float32'
  assert stored.dtype_of([half, np.zeros(3, np.float32)]) == 'float32'
  assert stored.dtype_of([np.zeros(3, ml_dtypes.bfloat16)]) == 'bfloat16'
  assert output.as_numpy('a', half).shape == ()
