"""Files that would eat the machine or hang it, through what a user calls.

Before they were bounded, each of them was a traceback, an endless wait, a crash
of a library, or all of the machine's memory.
"""

import dataclasses
import gzip
import json
import os
import shutil
import signal
import struct
import tracemalloc
import zlib

from etils import epath
import jax
import numpy as np
import pytest
import runs
import tensorflow as tf
import tfrecord_bytes
import tiny_metadata
import tiny_models
import tiny_step

from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import bounded_lines
from perlhf_jax.data import images
from perlhf_jax.data import json_documents
from perlhf_jax.data import json_rows
from perlhf_jax.data import tfrecord_rows
from perlhf_jax.data import vocabularies
from perlhf_jax.data import whole_files
from perlhf_jax.interop import hf
from perlhf_jax.interop import peft
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.interop import t5x_names
from perlhf_jax.interop import t5x_read
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import partitioning
from perlhf_jax.training import stored_arrays

_DEEP = '[' * 100_000 + ']' * 100_000
# Bytes that a refusal may take, beside what the file itself has.
_LITTLE = 6 * 2**20


@pytest.fixture(autouse=True)
def alarm():
  def stop(*_):
    raise AssertionError('it waits for ever')

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A MODEL_DIR, and a Hugging Face directory of the same model."""
  root = tmp_path_factory.mktemp('made')
  tiny_step.write(root / 'sft')
  assert runs.convert(root / 'sft', root / 'hf', 'hf') == 0
  return root


@pytest.fixture
def world(made, tmp_path):
  for name in 'sft', 'hf':
    shutil.copytree(made / name, tmp_path / name)
  return tmp_path


def _refusal(*arguments, capsys):
  """Runs a command that is refused; returns what it says."""
  capsys.readouterr()
  assert main.run([*arguments]) == 2
  message = capsys.readouterr().err
  assert 'Traceback' not in message
  return message


def _inspected(path, capsys):
  return _refusal('inspect', f'--checkpoint={path}', capsys=capsys)


def _load(path):
  return loading.load(str(path), partitioning.make_mesh())


def _edit(path, **changed):
  raw = json.loads(path.read_text())
  path.write_text(json.dumps({**raw, **changed}))


def _bomb(size):
  line = b'{"a": "' + b'x' * 2**12 + b'"}\n'
  packer = zlib.compressobj(9, zlib.DEFLATED, 31)
  block = (line * (2**20 // len(line) + 1))[: 2**20]
  packed = [packer.compress(block) for _ in range(size // 2**20)]
  return b''.join([*packed, packer.flush()])


def test_gzip_that_unpacks_to_a_thousand_times_its_size(tmp_path, monkeypatch):
  monkeypatch.setattr(bounded_lines, 'MIN_UNPACKED_BYTES', 2**23)
  path = tmp_path / 'rows.jsonl.gz'
  path.write_bytes(_bomb(2**24))
  tracemalloc.start()
  with pytest.raises(errors.DataError) as caught:
    for _ in json_rows.read(str(path)):
      pass
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert str(path) in str(caught.value)
  assert 'unpacks to more than 8,388,608' in str(caught.value)
  assert peak < _LITTLE


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_a_line_without_end(tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(bounded_lines, 'MAX_LINE_BYTES', 2**21)
  path = tmp_path / f'rows.jsonl{suffix}'
  content = b'{}\n' + b' ' * 2**22 + b'\n{}'
  path.write_bytes(gzip.compress(content) if suffix else content)
  with pytest.raises(errors.DataError, match='2 is longer than 2,097,152 byt'):
    list(json_rows.read(str(path)))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('length', [2**36, 2**30, 100])
def test_a_record_that_is_longer_than_its_file(tmp_path, packed, length):
  path = tmp_path / 'episodes'
  content = tfrecord_bytes.record(b'a' * 80, length)
  path.write_bytes(gzip.compress(content) if packed else content)
  (row,) = tfrecord_rows.read(str(path))
  assert row.origin == f'{path}#0' and 'is damaged' in row.problem
  if not packed:
    assert f'{length:,} bytes' in row.problem
    with pytest.raises(errors.DataError, match=f'{length:,} bytes'):
      tfrecord_rows.check_lengths(str(path))


@pytest.mark.parametrize(
  'content', [_DEEP, '{"a":' * 100_000, '[' * 1_000_000], ids=len
)
def test_json_that_is_nested_too_deeply(world, capsys, content):
  path = world / 'rows.jsonl'
  path.write_text(f'{content}\n{{"prompt": "a", "response": "b"}}\n')
  first, second = json_rows.read(str(path))
  assert 'not valid JSON' in first.problem and not second.problem
  message = _refusal(
    'score',
    f'--checkpoint={world / "sft"}',
    f'--input={path}',
    f'--output={world / "out.jsonl"}',
    capsys=capsys,
  )
  assert f'{path}:1 is not JSON' in message
  document = world / 'document.json'
  document.write_text(content)
  with pytest.raises(errors.DataError, match=r'document\.json'):
    json_documents.load(str(document), dict)
  with pytest.raises(errors.DataError, match=r'document\.json'):
    list(json_rows.read(str(document)))
  (world / 'hf/config.json').write_text(content)
  assert 'config.json' in _refusal(
    'inspect', f'--checkpoint={world / "hf"}', capsys=capsys
  )
  metadata = world / 'sft/checkpoints/0/metadata/metadata'
  metadata.write_text(content)
  tiny_step.seal(metadata.parent.parent)
  message = _inspected(world / 'sft', capsys)
  assert f'{metadata} is not JSON' in message


def test_a_config_of_ten_million_layers(world, capsys):
  _edit(world / 'hf/config.json', num_layers=10**7, num_decoder_layers=10**7)
  message = _inspected(world / 'hf', capsys)
  for wanted in 'hf/config.json', '10000000', 'from 1 to 256':
    assert wanted in message


def test_metadata_of_ten_million_layers(world, capsys):
  metadata = world / 'sft/checkpoints/0/metadata/metadata'
  raw = json.loads(metadata.read_text())
  raw['model']['num_encoder_layers'] = 10**7
  metadata.write_text(json.dumps(raw))
  tiny_step.seal(metadata.parent.parent)
  message = _inspected(world / 'sft', capsys)
  for wanted in 'sft/checkpoints/0', 'num_encoder_layers is 10000000', '256':
    assert wanted in message


def test_adapters_that_stand_on_themselves(tmp_path, capsys):
  folder = tmp_path / 'rm'
  lora = tiny_models.adapted(lora_lib.LoraConfig(rank=4))[1]
  for path in 'rm', 'other':
    tiny_step.write(
      tmp_path / path,
      dataclasses.replace(
        tiny_metadata.METADATA,
        kind='sft',
        objective='sft',
        policy=None,
        lora=lora_lib.LoraConfig(rank=4),
        base={'path': str(folder), 'fingerprint': 'f'},
      ),
      {'lora': lora},
    )
  for path in folder, tmp_path / 'other':
    with pytest.raises(errors.CheckpointError) as caught:
      _load(path)
    message = str(caught.value)
    assert 'names itself as its base' in message
    assert message.count('--base_checkpoint=DIR') == 1


def test_peft_adapters_that_stand_on_themselves(tmp_path, capsys):
  for name, base in ('a', 'b'), ('b', 'a'):
    folder = tmp_path / name
    folder.mkdir()
    raw = {
      'peft_type': 'LORA',
      'base_model_name_or_path': str(tmp_path / base),
      'target_modules': ['q'],
    }
    (folder / peft.CONFIG).write_text(json.dumps(raw))
  message = _inspected(tmp_path / 'a', capsys)
  assert f'names itself as its base: {tmp_path / "a"} -> ' in message


@pytest.mark.parametrize(
  'name',
  ['config.json', 'model.safetensors', 'tokenizer_config.json', 'spiece.model'],
)
def test_a_pipe_in_a_model(world, name):
  path = world / 'hf' / name
  path.unlink(missing_ok=True)
  if name == 'spiece.model':
    (world / 'hf/tokenizer_config.json').unlink()
  os.mkfifo(path)
  wanted = f'{name} .*named pipe, not a file. Put the right file'
  with pytest.raises(errors.UserError, match=wanted):
    _load(world / 'hf')


def test_a_device_in_a_model(world):
  path = world / 'hf/model.safetensors'
  path.unlink()
  path.symlink_to('/dev/zero')
  with pytest.raises(errors.CheckpointError, match='is a device, not a file'):
    _load(world / 'hf')


def test_pipes_and_devices_in_place_of_data(tmp_path):
  os.mkfifo(tmp_path / 'pipe.jsonl')
  (tmp_path / 'zero.json').symlink_to('/dev/zero')
  for path, read in (
    (tmp_path / 'pipe.jsonl', json_rows.read),
    (tmp_path / 'pipe.jsonl', tfrecord_rows.read),
    (tmp_path / 'zero.json', json_rows.read),
    (tmp_path / 'zero.json', lambda path: [whole_files.read(path)]),
  ):
    with pytest.raises(errors.DataError, match=r'a (named pipe|device), not'):
      list(read(str(path)))
  assert 'a named pipe' in images.find_problem(str(tmp_path / 'pipe.jsonl'))
  assert 'a device' in images.find_problem('/dev/zero')


def _png(width, height):
  def chunk(kind, content):
    body = kind + content
    return (
      struct.pack('>I', len(content))
      + body
      + struct.pack('>I', zlib.crc32(body))
    )

  rows = zlib.compress(bytes(2**20), 9)
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', rows)
    + chunk(b'IEND', b'')
  )


def test_an_image_of_billions_of_pixels(tmp_path):
  assert images.find_problem(_png(50_000, 50_000)) == (
    'the image of 1096 bytes has 50,000 x 50,000 pixels; at most 100,000,000 '
    'are read'
  )
  path = tmp_path / 'large.png'
  with path.open('wb') as file:
    file.write(_png(1, 1))
    file.truncate(2**40)
  assert 'it has 1,099,511,627,776 bytes; at most' in (
    images.find_problem(str(path))
  )


@pytest.mark.parametrize(
  'name', ['../hf/model.safetensors', '/etc/passwd', '..', 'a\0b', 3, None]
)
def test_an_index_that_names_files_elsewhere(world, name):
  (world / 'hf/model.safetensors').rename(world / 'model.safetensors')
  index = world / 'hf/model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'shared.weight': name}}))
  with pytest.raises(
    errors.CheckpointError, match='not the plain name of a file'
  ):
    hf.load_params(world / 'hf', hf.load_config(world / 'hf'))


def _as_zarr(state, shape, changed):
  """Makes a state of folders with `.zarray`, of hundreds of bytes each."""
  for entry in state.iterdir():
    if entry.name != '_METADATA':
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
  index = json.loads((state / '_METADATA').read_text())
  index['use_ocdbt'] = False
  (state / '_METADATA').write_text(json.dumps(index))
  params = tree_paths.flatten({'trainable': {'params': tiny_models.params()}})
  shapes = {k.replace('/', '.'): leaf.shape for k, leaf in params.items()}
  for entry in index['tree_metadata'].values():
    name = '.'.join(key['key'] for key in entry['key_metadata'])
    size = list(shapes.get(name, ()))
    if name.endswith(changed):
      size = shape
    array = {
      'zarr_format': 2,
      'shape': size,
      'chunks': size,
      'dtype': '<f4',
      'compressor': None,
      'fill_value': None,
      'filters': None,
      'order': 'C',
      'dimension_separator': '.',
    }
    (state / name).mkdir()
    (state / name / '.zarray').write_text(json.dumps(array))
  tiny_step.seal(state.parent)


def test_an_array_of_any_size_in_a_hundred_bytes(world):
  state = world / 'sft/checkpoints/0/state'
  _as_zarr(state, [200_000, 200_000], 'token_embedder.embedding')
  with pytest.raises(errors.CheckpointError) as caught:
    _load(world / 'sft')
  message = str(caught.value)
  assert (
    'float32 [200000, 200000] in its files, but float32 [40, 16]' in message
  )


@pytest.mark.parametrize(
  ('shape', 'chunks'),
  [([10**6, 10**6], [10, 10]), ([10, 10], [10**6, 10**6])],
)
def test_an_array_of_t5x_of_any_size(tmp_path, shape, chunks):
  array = {
    'zarr_format': 2,
    'shape': shape,
    'chunks': chunks,
    'dtype': '<f4',
    'compressor': None,
    'fill_value': None,
    'filters': None,
    'order': 'C',
  }
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a/.zarray').write_text(json.dumps(array))
  store = {'driver': 'file', 'path': f'{tmp_path}/a/'}
  stored = t5x_layouts.Stored({'driver': 'zarr', 'kvstore': store}, None, None)
  reader = t5x_read.Reader(
    t5x_layouts.Index(epath.Path(tmp_path), {'a': stored}, False)
  )
  source = t5x_names.Source('a', tuple(shape), 'a', tuple(shape), None)
  with pytest.raises(
    errors.CheckpointError, match=r'needs 3,725\.3 GiB of mem'
  ):
    np.asarray(reader.stored(source))


def test_a_model_that_no_machine_can_hold(tmp_path):
  leaf = jax.ShapeDtypeStruct((10_000_000, 1_000_000), np.float32)
  mesh = partitioning.make_mesh().mesh
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for shardings, where in (
    ({}, 'on this machine'),
    ({'a': whole}, 'on a device'),
  ):
    with pytest.raises(errors.CheckpointError) as caught:
      stored_arrays.check_room({'a': leaf}, shardings, epath.Path(tmp_path))
    for wanted in str(tmp_path), '37,252.9 GiB', where, 'are free':
      assert wanted in str(caught.value)


@pytest.mark.parametrize('key', ['../../hf', '/etc/passwd', 'a\0'])
def test_names_of_arrays_that_lead_elsewhere(world, key):
  index = world / 'sft/checkpoints/0/state/_METADATA'
  raw = json.loads(index.read_text())
  next(iter(raw['tree_metadata'].values()))['key_metadata'][0]['key'] = key
  index.write_text(json.dumps(raw))
  tiny_step.seal(index.parent.parent)
  with pytest.raises(errors.CheckpointError, match='outside of the checkpoint'):
    _load(world / 'sft')


def test_a_vocabulary_that_is_none(world, capsys):
  metadata = world / 'sft/checkpoints/0/metadata/metadata'
  raw = json.loads(metadata.read_text())
  for vocabulary, wanted in (
    ({'kind': 'sentencepiece', 'extra_ids': 0}, 'SentencePiece model'),
    ({'kind': 'byte', 'extra_ids': 10**9}, 'extra_ids is 1000000000'),
    (
      {'kind': 'sentencepiece', 'extra_ids': 0, 'model_base64': '?'},
      'not in base64',
    ),
    ('byte', 'is not a JSON object'),
  ):
    metadata.write_text(json.dumps({**raw, 'vocabulary': vocabulary}))
    tiny_step.seal(metadata.parent.parent)
    message = _refusal(
      'inspect', f'--checkpoint={world / "sft"}', capsys=capsys
    )
    assert wanted in message and 'checkpoints/0' in message


@pytest.mark.parametrize(
  'content', ['[]', '{"extra_ids": "x"}', '{"extra_ids": -1}', _DEEP], ids=len
)
def test_a_tokenizer_that_is_none(tmp_path, content):
  (tmp_path / 'tokenizer_config.json').write_text(content)
  with pytest.raises(errors.ConfigError, match=r'tokenizer_config\.json'):
    vocabularies.load_from_hf_directory(str(tmp_path))


def test_metadata_that_contradicts_itself():
  raw = run_metadata.to_json(tiny_step.METADATA)
  for changed in (
    {'tuning': None},
    {'kind': None},
    {'tuning': 'lora'},
    {'kind': 'class'},
    {'base': {'path': 3}},
    {'base': {}},
    {'base': {'path': 'a\0b'}},
    {'policy': {'reward_checkpoints': {'path': 'a'}}},
    {'policy': {'temperature': 'hot'}},
    {'task_feature_lengths': {'inputs': 10**12}},
    {'format_version': 'new'},
    {'unknown_of_the_future': 1},
    {'model': {**raw['model'], 'unknown_of_the_future': 1}},
  ):
    with pytest.raises(errors.CheckpointError, match='The metadata of STEP'):
      run_metadata.from_json({**raw, **changed}, 'STEP')
  optional = {'policy', 'module', 'versions', 'made_of'}
  optional |= {'data', 'eval_data', 'settings', 'changes'}
  for name in raw:
    fewer = {key: value for key, value in raw.items() if key != name}
    if name not in optional:
      with pytest.raises(errors.CheckpointError, match='The metadata of STEP'):
        run_metadata.from_json(fewer, 'STEP')


def test_a_line_of_two_hundred_thousand_letters(world, capsys):
  path = world / 'rows.jsonl'
  # A letter whose byte is among the few tokens of the model.
  row = {'prompt': '\x1e' * 200_000, 'response': '\x1e'}
  path.write_text(json.dumps(row) + '\n')
  message = _refusal(
    'score',
    f'--checkpoint={world / "sft"}',
    f'--input={path}',
    f'--output={world / "out.jsonl"}',
    capsys=capsys,
  )
  assert f'{path}:1 has a prompt of 200,001 tokens; at most 65,536' in message
  assert '--prompt_length=65536' in message
  assert not (world / 'out.jsonl').exists()


def test_an_image_is_read_as_before():
  pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  for encode in tf.io.encode_png, tf.io.encode_jpeg:
    assert images.find_problem(encode(pixels).numpy()) is None
