"""The registry of formats: the built-in ones and those that users add."""

from typing import TypeVar

from etils import epath

from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.checkpoints.formats import hugging_face
from perlhf_jax.checkpoints.formats import pali
from perlhf_jax.checkpoints.formats import peft
from perlhf_jax.checkpoints.formats import perlhf
from perlhf_jax.checkpoints.formats import siglip
from perlhf_jax.checkpoints.formats import t5x
from perlhf_jax.core import errors
from perlhf_jax.interop import remote_files

_Kind = TypeVar('_Kind', bound=format_lib.Format)

# The first that recognises a path reads it.
_formats: list[format_lib.Format] = [
  perlhf.Perlhf(),
  peft.Peft(),
  hugging_face.HuggingFace(),
  pali.Pali(),
  t5x.T5x(),
  siglip.Siglip(),
]


def register(format_: format_lib.Format) -> None:
  """Adds a format, which takes precedence over all earlier ones.

  Every command that takes a checkpoint then takes checkpoints of this format.

  Args:
    format_: a `ModelFormat`, most easily a `WeightsFormat`; or a `VitFormat`.

  Raises:
    ConfigError: a format of that name exists.
  """
  if format_.name in {each.name for each in _formats}:
    raise errors.ConfigError(
      f'A checkpoint format {format_.name!r} is registered already; choose '
      'another name.'
    )
  _formats.insert(0, format_)


def writer(name: str) -> format_lib.WritableFormat:
  """Returns the writable format with a name.

  Raises:
    ConfigError: there is no such format.
  """
  names = {
    each.name: each
    for each in _formats
    if isinstance(each, format_lib.WritableFormat)
  }
  if name not in names:
    raise errors.ConfigError(
      f'--to={name} is not a format that can be written; choose one of '
      f'{", ".join(sorted(names))}.'
    )
  return names[name]


def find(path: str, kind: type[_Kind] = format_lib.ModelFormat) -> _Kind:
  """Returns the format that reads the checkpoint at a path.

  Args:
    path: local or remote.
    kind: `ModelFormat` or `VitFormat`.

  Raises:
    CheckpointError: no format recognises the path, or it cannot be reached.
  """
  with remote_files.explained(path):
    known = [each for each in _formats if isinstance(each, kind)]
    for format_ in known:
      if format_.recognises(path):
        return format_
    directory = epath.Path(path)
    is_directory, is_file = directory.is_dir(), directory.exists()
  if is_directory:
    names = ', '.join(each.name for each in known)
    found = f'its files match no known format ({names})'
  else:
    found = 'it is a file' if is_file else 'there is no such folder'
  raise errors.CheckpointError(
    f'No checkpoint at {path}: {found}. Give '
    f'{" or ".join(each.title for each in known)} (download a model of the '
    'Hub first: hf download NAME --local-dir=DIR).'
  )
