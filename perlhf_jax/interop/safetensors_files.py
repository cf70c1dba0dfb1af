"""Reads the safetensors of a model: one file, or shards with an index."""

from collections.abc import Callable
import pathlib

from etils import epath
from etils import epy
import ml_dtypes  # noqa: F401  Teaches numpy bfloat16, for safetensors.
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.interop import stored as stored_lib

# Not needed on machines that read no such file.
with epy.lazy_imports():
  import safetensors

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_FLOATS = {
  'F64': 'float64',
  'F32': 'float32',
  'F16': 'float16',
  'BF16': 'bfloat16',
}
_LFS_POINTER = b'version https://git-lfs'


def read_json(path: epath.Path) -> dict:
  """Reads a JSON object.

  Raises:
    CheckpointError: the file is missing, unreadable, too large, or holds
      something else.
  """
  try:
    value = strict_json.loads(plain_files.read(path, errors.CheckpointError))
  except (OSError, ValueError) as error:
    raise errors.CheckpointError(
      f'{path} cannot be read as JSON ({error}); copy or download it again.'
    ) from error
  if not isinstance(value, dict):
    raise errors.CheckpointError(
      f'{path} holds a {type(value).__name__} and not a JSON object; copy or '
      'download it again.'
    )
  return value


def files_of(directory: epath.Path) -> list[str]:
  """Returns the names of the files in a directory that `Reader` reads.

  Args:
    directory: local or remote.

  Returns:
    `model.safetensors`, or the index and its shards; empty without either.

  Raises:
    CheckpointError: the index is damaged.
  """
  if (directory / SINGLE).exists():
    return [SINGLE]
  if (directory / INDEX).exists():
    return [INDEX, *sorted(set(_weight_map(directory).values()))]
  return []


def _weight_map(directory: epath.Path) -> dict[str, str]:
  index = directory / INDEX
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise errors.CheckpointError(
      f'{index} has no weight_map; copy or download it again.'
    )
  for name in weight_map.values():
    # An index must not name files outside the directory.
    if not isinstance(name, str) or not is_plain_name(name):
      raise errors.CheckpointError(
        f'{index} names the file {checks.shown(name)}, which is not the plain '
        'name of a file beside it. Copy or download it again.'
      )
  return weight_map


def is_plain_name(name: str) -> bool:
  """Whether a name is a file name, not a path out of the folder."""
  return (
    name not in ('', '.', '..')
    and pathlib.PurePosixPath(name).name == name
    and '\0' not in name
    and '\\' not in name
  )


class Reader:
  """Reads tensors one at a time.

  A file is mapped only while one of its tensors is read, because mapped pages
  that were read count as memory of this process.
  """

  def __init__(self, directory: epath.Path, name: str = SINGLE):
    """Reads the headers of the files.

    Args:
      directory: local directory.
      name: name of the file; in place of `model.safetensors`, there may be
        shards and their index.

    Raises:
      CheckpointError: a file is missing or damaged, or the shards do not match
        the index.
    """
    self._directory = directory
    self._files = {}
    self._shapes = {}
    self._dtypes = {}
    if (directory / name).exists():
      self._add(name)
    elif name != SINGLE:
      raise errors.CheckpointError(
        f'{directory} lacks {name}; copy or download it too.'
      )
    else:
      self._add_shards()

  def _add(self, name: str) -> set[str]:
    """Registers a file's tensors, and returns their names."""
    path = self._directory / name
    plain_files.check(path, errors.CheckpointError)
    with path.open('rb') as file:
      if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
        raise errors.CheckpointError(
          f'{path} is a Git LFS pointer and not the weights; run "git lfs '
          f'pull" in {self._directory}.'
        )
    with self._opened(name) as opened:
      tensors = set(opened.keys())
      for tensor in tensors:
        part = opened.get_slice(tensor)
        self._files[tensor] = name
        self._shapes[tensor] = tuple(part.get_shape())
        self._dtypes[tensor] = part.get_dtype()
    return tensors

  def _opened(self, name: str):
    path = self._directory / name
    try:
      return safetensors.safe_open(path, framework='np')
    except (OSError, safetensors.SafetensorError) as error:
      raise errors.CheckpointError(
        f'{path} cannot be read as safetensors ({error}); copy or download it '
        'again.'
      ) from error

  def _add_shards(self) -> None:
    weight_map = _weight_map(self._directory)
    shards = sorted(set(weight_map.values()))
    absent = [name for name in shards if not (self._directory / name).exists()]
    if absent:
      raise errors.CheckpointError(
        f'{self._directory} lacks {first(absent)}, which {INDEX} names; copy '
        'or download the missing files too.'
      )
    for shard in shards:
      stored = self._add(shard)
      listed = {name for name, file in weight_map.items() if file == shard}
      if stored != listed:
        raise errors.CheckpointError(
          f'{self._directory / shard} and {INDEX} disagree about '
          f'{first(sorted(stored ^ listed))}; they are not of one model. Copy '
          'or download the whole directory again.'
        )

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor, without reading tensors."""
    return dict(self._shapes)

  def stored(
    self,
    name: str,
    shape: tuple[int, ...],
    convert: Callable[[np.ndarray], np.ndarray],
  ) -> stored_lib.Stored:
    """Returns a parameter that is read lazily.

    Args:
      name: name of the tensor.
      shape: shape of the parameter.
      convert: converts the tensor, in float32, to the parameter.

    Raises:
      CheckpointError: the tensor does not hold floating-point numbers.
    """
    dtype = self._float_dtype(name)
    return stored_lib.Stored(
      shape, dtype, name, lambda: convert(self.read(name))
    )

  def read(self, name: str) -> np.ndarray:
    """Returns a tensor in float32.

    Raises:
      CheckpointError: the tensor does not hold floating-point numbers.
    """
    self._float_dtype(name)
    with self._opened(self._files[name]) as file:
      return file.get_tensor(name).astype(np.float32, copy=False)

  def _float_dtype(self, name: str) -> str:
    dtype = self._dtypes[name]
    if dtype not in _FLOATS:
      raise errors.CheckpointError(
        f'{self._directory}: tensor {name} is {dtype}; supported are '
        f'{", ".join(_FLOATS)}. Quantised weights must be saved in one of '
        'these first.'
      )
    return _FLOATS[dtype]


def first(names: list[str], limit: int = 5) -> str:
  """Lists up to `limit` names and counts the rest."""
  rest = len(names) - limit
  listed = ', '.join(names[:limit])
  return f'{listed} and {rest} more' if rest > 0 else listed
