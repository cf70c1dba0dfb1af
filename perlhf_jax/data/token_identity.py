"""Describes, as text, everything that the rows and tokens of a task depend on.

Two reads of a task with the same text give the same rows. If that cannot be
guaranteed, there is no text.
"""

from collections.abc import Callable
import functools
import hashlib
import json
import os
import pathlib
import sys
import time
from typing import Any

import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import function_digest
from perlhf_jax.data import json_rows
from perlhf_jax.data import kinds
from perlhf_jax.data import row_stream
from perlhf_jax.data import sources
from perlhf_jax.data import task_reader
from perlhf_jax.data import vocabularies

# Increase it when the content or format of the cache changes.
_FORMAT = 2
# A file that was written more recently may change again with the same times.
_SETTLED_SECONDS = 2.0
# Options that do not change the rows of a task.
_IRRELEVANT = (
  *('mixture_or_task_name', 'batch_size', 'shuffle', 'seed', 'module'),
  *('length_buckets', 'length_window', 'use_cached'),
)


def describe(reader: task_reader.TaskReader, task: seqio.Task) -> str:
  """Returns everything that the result of `reader.read(task)` depends on.

  Raises:
    UnknownError: the dependencies cannot be determined; the message says why.
    DataError: the task's files are missing.
  """
  source = task.source
  if not (
    row_stream.is_plain(task)
    and not reader.config.use_cached
    and type(source) is sources.FileSource
  ):
    raise function_digest.UnknownError('its rows do not come from JSON files')
  if kinds.IMAGES in task.output_features:
    raise function_digest.UnknownError('it has images')
  options = {
    name: value
    for name, value in vars(reader.config).items()
    if name not in _IRRELEVANT
  }
  try:
    vocabulary = vocabularies.to_dict(reader.vocabulary)
  except errors.ConfigError as error:
    raise function_digest.UnknownError('its vocabulary is unknown') from error
  files = source.files(reader.config.split)
  return json.dumps(
    {
      'format': _FORMAT,
      'python': sys.version,
      'code': _our_code(),
      'installed': _installed(),
      'task': task.name,
      'kind': reader.converter.kind.name,
      'lists': list(source.lists),
      'options': options,
      'vocabulary': _hashed(vocabulary),
      'vocabulary_class': function_digest.digest(type(reader.vocabulary)),
      'parse': function_digest.digest(source.parse),
      'read': _digest_of_reader(source.read),
      'find_splits': function_digest.digest(source.find_splits),
      'files': [
        [dict(group.splits), list(map(_file, paths))] for group, paths in files
      ],
    },
    default=repr,
  )


def _digest_of_reader(read: Callable[..., Any]) -> str:
  if read in (json_rows.read, json_rows.read_lines):
    return read.__name__
  return function_digest.digest(read)


def _file(path: str) -> list[Any]:
  """Returns properties of a file that change with its content."""
  try:
    if '://' in path:
      status = tf.io.gfile.stat(path)
      return [path, status.length, status.mtime_nsec]
    status = os.stat(path)
  except (OSError, tf.errors.OpError) as error:
    raise function_digest.UnknownError(f'{path} has no status') from error
  # Unlike the modification time, the status time (ctime) cannot be set back.
  if status.st_ctime > time.time() - _SETTLED_SECONDS:
    raise function_digest.UnknownError(f'{path} has just been written')
  times = status.st_mtime_ns, status.st_ctime_ns
  return [path, status.st_size, *times, status.st_ino]


def _hashed(value: Any) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@functools.cache
def _our_code() -> str:
  """Returns a digest of the code that turns records into tokens."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parent.glob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


@functools.cache
def _installed() -> str:
  """Returns a digest of the names and versions of installed distributions."""
  names = set()
  for folder in filter(os.path.isdir, sys.path):
    # Each installed distribution has a folder `name-version.dist-info`.
    names.update(n for n in os.listdir(folder) if n.endswith('-info'))
  return _hashed(sorted(names))
