"""Finds the tensors of a T5X checkpoint, in all layouts that T5X has written.

A step is a folder, such as `checkpoint_1000000`, in the folder of a run. Each
tensor of `target`, which holds the weights, is a zarr array:

*   until 2023: in its own folder, `target.encoder.encoder_norm.scale`. The
    msgpack file `checkpoint` lists the tensors, each by a TensorStore
    specification with the shape (versions 2 and 3), or by a string
    `PLACEHOLDER://target.encoder.encoder_norm.scale`. Small arrays may be in
    that file itself.
*   since then: in a key-value store (OCDBT) in the folder `state`, whose
    `_METADATA` lists the tensors.

Everything else, such as optimizer state, is ignored. This module does not
import T5X. It takes from a specification only the name of a folder in the
checkpoint.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import os
import re
from typing import Any, NamedTuple

from etils import epath
from flax import serialization
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_files

INDEX = 'checkpoint'
METADATA = '_METADATA'
STATE = 'state'
STEP_PREFIX = 'checkpoint_'
CONTENTS = (
  'a T5X checkpoint is a folder checkpoint_STEP with a file "checkpoint" and '
  'folders "target...", or with a folder "state", or a folder of such folders'
)

_OCDBT = 'manifest.ocdbt'
_EMBEDDING = 'target.token_embedder.embedding'
_PLACEHOLDER = 'PLACEHOLDER://'
_STEP = re.compile(rf'{STEP_PREFIX}(\d{{1,18}})', re.ASCII)
# Keys of the training state, which depend on the version of T5X.
_ROOTS = ('optimizer', '_optimizer')
_VERSIONS = (2, 3)
_TARGET = re.compile(r"\((?:'_?optimizer', )?'target', ")
# Maximum size of the msgpack file, which may contain small arrays.
_MAX_INDEX_BYTES = 4 * 1024**3
_MAX_DEPTH = 100
_BUCKET = re.compile(r'gs://([^/]+)/(.*)')


class Stored(NamedTuple):
  """Where a tensor is.

  Attributes:
    spec: TensorStore's specification; None for an array in the msgpack file.
    value: the array, if it is in the msgpack file.
    shape: shape by the msgpack file; None if only the tensor's files have it.
  """

  spec: dict[str, Any] | None
  value: np.ndarray | None
  shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Index:
  """The tensors of a step.

  Attributes:
    folder: folder of the step.
    tensors: tensors of `target`, by name, such as 'encoder/encoder_norm/scale'.
    bfloat16_as_uint16: whether uint16 arrays are bits of bfloat16 (version 2).
  """

  folder: epath.Path
  tensors: Mapping[str, Stored]
  bfloat16_as_uint16: bool


def find(path: str | os.PathLike[str]) -> epath.Path | None:
  """Returns the folder of the step at a path, or None.

  Args:
    path: path of a step, or of a folder of steps, of which the newest is used;
      local or remote.
  """
  folder = epath.Path(path)
  if not folder.is_dir():
    return None
  if _is_step(folder):
    return folder
  steps = {
    int(match[1]): child
    for child in folder.iterdir()
    if (match := _STEP.fullmatch(child.name))
  }
  # T5X and Orbax give a step its name only when it is complete.
  for step in sorted(steps, reverse=True):
    if _is_step(steps[step]):
      return steps[step]
  return None


def _is_step(folder: epath.Path) -> bool:
  """Whether a folder holds a step, perhaps an incomplete one."""
  for place in (folder, folder / STATE):
    if _is_index(place / INDEX) or (place / _EMBEDDING).exists():
      return True
    metadata = place / METADATA
    if metadata.exists() and (
      # Other programs also write such files, through Orbax.
      _STEP.fullmatch(folder.name) or _TARGET.search(_text(metadata))
    ):
      return True
  return False


def _text(path: epath.Path) -> str:
  content = plain_files.read(path, errors.CheckpointError)
  return content.decode('utf-8', 'replace')


def _is_index(path: epath.Path) -> bool:
  if not path.exists() or path.is_dir():
    return False
  plain_files.check(path, errors.CheckpointError)
  with path.open('rb') as file:
    start = file.read(len(b'model_checkpoint_path'))
  # TensorFlow's checkpoints have a text file with this name.
  return not start.startswith((b'model_checkpoint', b'{'))


def read(folder: epath.Path) -> Index:
  """Lists the tensors of a step, without opening them.

  Args:
    folder: folder from `find`.

  Raises:
    CheckpointError: the list is missing, damaged, of an older version or empty;
      or the folder is neither local nor in Google Cloud Storage.
  """
  for place in (folder, folder / STATE):
    if (place / METADATA).exists():
      tensors, version = _of_metadata(place), None
      break
    if (place / INDEX).exists():
      tensors, version = _of_msgpack(place)
      break
  else:
    raise errors.CheckpointError(
      f'{folder} lacks the file "{INDEX}", which says what a T5X checkpoint '
      'holds. Copy it from where the folders "target..." came from.'
    )
  if not tensors:
    raise errors.CheckpointError(
      f'{folder} lists no weights under "target"; {CONTENTS}. Copy it again.'
    )
  return Index(folder, tensors, bfloat16_as_uint16=version == 2)


def _of_msgpack(place: epath.Path) -> tuple[dict[str, Stored], int | None]:
  path = place / INDEX
  encoded = plain_files.read(path, errors.CheckpointError, _MAX_INDEX_BYTES)
  try:
    content = serialization.msgpack_restore(encoded)
    version = content.get('version')
  # A damaged file can raise any of msgpack's errors.
  except Exception as error:
    raise errors.CheckpointError(
      f'{path} cannot be read as msgpack ({type(error).__name__}: {error}); '
      'copy or download it again.'
    ) from error
  for root in _ROOTS:
    if isinstance(content.get(root), dict):
      content = content[root]
      if root == 'optimizer' and version not in _VERSIONS:
        raise errors.CheckpointError(
          f'{path} is of version {version}; T5X has written 2 and 3 since '
          '2021, which are read. Have T5X convert it first.'
        )
      break
  tensors = {}
  for name, leaf in _leaves(content.get('target'), path):
    if isinstance(leaf, np.ndarray):
      tensors[name] = Stored(None, leaf, leaf.shape)
    elif isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
      key = leaf.removeprefix(_PLACEHOLDER)
      tensors[name] = Stored(_spec(place, key, path), None, None)
    elif isinstance(leaf, dict):
      tensors[name] = _of_spec(place, leaf, name, path)
    else:
      raise errors.CheckpointError(
        f'{path}: {name} is a {type(leaf).__name__}, neither an array nor '
        'where to find one. Copy or download the file again.'
      )
  return tensors, version


def _leaves(
  tree: Any, path: epath.Path, name: str = '', depth: int = 0
) -> Iterator[tuple[str, Any]]:
  if depth > _MAX_DEPTH:
    raise errors.CheckpointError(
      f'{path} is nested more than {_MAX_DEPTH} levels deep. Copy or download '
      'it again.'
    )
  if isinstance(tree, dict) and 'driver' not in tree:
    for key, value in tree.items():
      inner = f'{name}/{key}' if name else str(key)
      yield from _leaves(value, path, inner, depth + 1)
  elif name:
    yield name, tree


def _of_spec(
  place: epath.Path, spec: Mapping[str, Any], name: str, path: epath.Path
) -> Stored:
  try:
    # TensorStore before 0.1.14 had the path outside of `kvstore`.
    key = spec['kvstore'].get('path', spec.get('path'))
    shape = tuple(int(size) for size in spec['metadata']['shape'])
    if spec['driver'] != 'zarr' or not isinstance(key, str):
      raise ValueError(f'driver {spec["driver"]}, path {key}')
  except (
    *(KeyError, TypeError, ValueError, AttributeError, OverflowError),
  ) as error:
    raise errors.CheckpointError(
      f'{path}: {name} is no array that T5X writes ({error!r}). Copy or '
      'download the file again.'
    ) from error
  return Stored(_spec(place, key, path), None, shape)


def _of_metadata(place: epath.Path) -> dict[str, Stored]:
  path = place / METADATA
  try:
    content = strict_json.loads(plain_files.read(path, errors.CheckpointError))
    driver = 'zarr3' if content.get('use_zarr3') else 'zarr'
    tensors = {}
    for entry in content['tree_metadata'].values():
      keys = [str(key['key']) for key in entry['key_metadata']]
      key = '.'.join(keys)
      if keys[0] in _ROOTS:
        del keys[0]
      if keys[0] == 'target':
        name = '/'.join(keys[1:])
        tensors[name] = Stored(_spec(place, key, path, driver), None, None)
  except (
    *(OSError, KeyError, IndexError),
    *(TypeError, ValueError, AttributeError),
  ) as error:
    raise errors.CheckpointError(
      f'{path} is damaged ({error!r}); copy or download it again.'
    ) from error
  return tensors


def _spec(
  place: epath.Path, key: str, path: epath.Path, driver: str = 'zarr'
) -> dict[str, Any]:
  """Returns TensorStore's specification of a named array in a folder."""
  key = key.strip('/')
  if not safetensors_files.is_plain_name(key):
    raise errors.CheckpointError(
      f'{path} has an array in {checks.shown(key)}, which is not a name of a '
      f'folder in {place}. Only checkpoints that are a folder of their own are '
      'read.'
    )
  base = key_value_store(place)
  if (place / _OCDBT).exists():
    store = {'driver': 'ocdbt', 'base': base, 'path': f'{key}/'}
  else:
    store = base | {'path': f'{base["path"]}{key}/'}
  return {
    'driver': driver,
    'kvstore': store,
    # Otherwise a missing chunk would be read as zeros.
    'fill_missing_data_reads': False,
  }


def key_value_store(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns TensorStore's specification of a folder.

  Raises:
    CheckpointError: the folder is neither local nor in Google Cloud Storage.
  """
  path = os.fspath(folder)
  if not remote_files.is_remote(path):
    return {'driver': 'file', 'path': f'{os.path.abspath(path)}/'}
  match = _BUCKET.fullmatch(path)
  if match is None:
    raise errors.CheckpointError(
      f'{path} cannot be read in place: T5X checkpoints are read from local '
      'folders and from gs://. Copy it to either.'
    )
  return {'driver': 'gcs', 'bucket': match[1], 'path': f'{match[2]}/'}
