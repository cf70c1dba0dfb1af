"""T5X checkpoints for tests: golden ones, edited ones, and a writer.

The writer knows the format from its description, and shares nothing with
`perlhf_jax.interop.t5x_write`: it writes zarr's files itself.
"""

import gzip
import json
import pathlib
import re
import shutil

from flax import serialization
import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
STEP = 'checkpoint_7'
LEGACY = GOLDEN / 't5x_legacy_v1_1'
ORBAX = GOLDEN / 't5x_orbax_v1_1'
BFLOAT16 = GOLDEN / 't5x_legacy_v1_0'
SCANNED = GOLDEN / 't5x_legacy_umt5'
# Of shape [8, 20] in the first two.
QUERY = 'encoder/layers_1/attention/query/kernel'


def folder_of(name):
  return f'target.{name.replace("/", ".")}'


def copy(source, target):
  """Copies a golden checkpoint and returns the folder of its step."""
  shutil.copytree(source, target)
  return target / STEP


def edit_index(step, edit):
  """Rewrites the msgpack file by a function of its content."""
  path = step / 'checkpoint'
  content = serialization.msgpack_restore(path.read_bytes())
  path.write_bytes(serialization.msgpack_serialize(edit(content) or content))


def write(step, arrays, version=3):
  """Writes arrays by name into a legacy checkpoint, in chunks of 3 rows."""
  step.mkdir(parents=True)
  target = {}
  for name, array in arrays.items():
    folder = step / folder_of(name)
    folder.mkdir()
    chunks = (min(3, array.shape[0]), *array.shape[1:])
    metadata = {
      'chunks': chunks,
      'compressor': {'id': 'gzip', 'level': 1},
      'dtype': {'bfloat16': 'bfloat16', 'float16': '<f2'}.get(
        array.dtype.name, array.dtype.str
      ),
      'fill_value': None,
      'filters': None,
      'order': 'C',
      'shape': array.shape,
      'zarr_format': 2,
    }
    (folder / '.zarray').write_text(json.dumps(metadata))
    for number, start in enumerate(range(0, array.shape[0], chunks[0])):
      chunk = np.zeros(chunks, array.dtype)
      part = array[start : start + chunks[0]]
      chunk[: len(part)] = part
      file = '.'.join([str(number), *['0'] * (array.ndim - 1)])
      (folder / file).write_bytes(gzip.compress(chunk.tobytes()))
    node = target
    *modules, last = name.split('/')
    for module in modules:
      node = node.setdefault(module, {})
    node[last] = {
      'driver': 'zarr',
      'dtype': array.dtype.name,
      'kvstore': {'driver': 'gfile', 'path': f'{folder_of(name)}/'},
      'metadata': {'shape': list(array.shape)},
    }
  content = {
    'version': version,
    'optimizer': {
      'target': target,
      'state': {'step': np.int32(7), 'param_states': {}},
    },
  }
  (step / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))


def read_tensor(step, name):
  """Reads one array of float32, chunk by chunk."""
  folder = step / folder_of(name)
  metadata = json.loads((folder / '.zarray').read_text())
  assert metadata['dtype'] == '<f4' and metadata['compressor']['id'] == 'gzip'
  array = np.full(metadata['shape'], np.nan, np.float32)
  for file in folder.glob('[0-9]*'):
    chunk = np.frombuffer(gzip.decompress(file.read_bytes()), np.float32)
    place = tuple(
      slice(int(number) * size, (int(number) + 1) * size)
      for number, size in zip(
        file.name.split('.'), metadata['chunks'], strict=True
      )
    )
    # At the edge, a chunk is larger than what it holds.
    part = array[place]
    inside = tuple(slice(size) for size in part.shape)
    part[...] = chunk.reshape(metadata['chunks'])[inside]
  return array


def scanned(flat, heads=None):
  """Stacks unrolled layers along axis 1; with `heads`, sets heads apart."""
  stacked, layers = {}, {}
  for path, array in flat.items():
    if heads and '/out/kernel' in path:
      array = array.reshape(heads, -1, array.shape[1])
    elif heads and 'attention/' in path:
      array = array.reshape(array.shape[0], heads, -1)
    match = re.fullmatch(r'(encoder|decoder)/layers_(\d+)/(.*)', path)
    if match:
      name = f'{match[1]}/{match[1]}/{match[3]}'
      layers.setdefault(name, {})[int(match[2])] = array
    else:
      stacked[path] = array
  for name, by_index in layers.items():
    stacked[name] = np.stack([by_index[i] for i in sorted(by_index)], axis=1)
  return stacked


def to_version_2(step):
  """Has a checkpoint hold its bfloat16 as unsigned numbers."""
  for path in step.glob('target.*/.zarray'):
    path.write_text(path.read_text().replace('"bfloat16"', '"<u2"'))

  def edit(node):
    if node.get('dtype') == 'bfloat16':
      node['dtype'] = 'uint16'
    for child in node.values():
      if isinstance(child, dict):
        edit(child)

  edit_index(step, lambda content: edit(content) or content | {'version': 2})
