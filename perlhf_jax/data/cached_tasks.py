"""Reads the caches of `seqio_cache_tasks`, in the order of the source.

Apache Beam, which runs `seqio_cache_tasks`, changes the order of the rows. Our
sources number their rows, so that a run on a cached task sees the same examples
in the same order as a run without the cache. Two cases that SeqIO ignores are
errors here: a task that does not support caching, and missing files.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Annotated, Any

from absl import logging
import seqio
import tensorflow as tf

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.data import json_documents
from perlhf_jax.data import sources
from perlhf_jax.data import tfrecord_rows

CACHE_DIR_VARIABLE = 'PERLHF_CACHE_DIR'


@dataclasses.dataclass(frozen=True)
class _Info:
  """The fields of SeqIO's description of a split that are read."""

  num_shards: Annotated[int, checks.Range(least=1, most=100_000)]


def add_cache_dir():
  """Tells SeqIO to look for cached tasks in PERLHF_CACHE_DIR, if it is set."""
  if folder := os.environ.get(CACHE_DIR_VARIABLE):
    seqio.add_global_cache_dirs([folder])


def read(
  task: seqio.Task, split: str, seed: int | None = None
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a cached split.

  Args:
    task: a registered task, after `add_cache_dir`.
    split: name of the split.
    seed: seed of random preprocessors after the cache.

  Returns:
    The rows as NumPy values. Rows of our sources come in the order of the
    source, other rows in the order of the cache.

  Raises:
    ConfigError: the task cannot be cached.
    DataError: there is no cache, or a part of it is missing or damaged.
  """
  if not task.supports_caching:
    raise errors.ConfigError(
      f'USE_CACHED_TASKS is set, but task {task.name!r} cannot be cached. Put'
      ' seqio.CacheDatasetPlaceholder() among its preprocessors, after the'
      ' steps that need not be repeated, or set USE_CACHED_TASKS to False.'
    )
  if not task.cache_dir:
    raise errors.DataError(_no_cache(task))
  if not _has_rows(task, split):
    return iter(())
  dataset = task.get_dataset(
    sequence_length=None,
    split=split,
    use_cached=True,
    shuffle=False,
    seed=seed,
    num_epochs=1,
    trim_output_features=False,
    try_in_mem_cache=False,
  )
  try:
    rows = list(dataset.as_numpy_iterator())
  except tf.errors.DataLossError as error:
    raise _damaged(task, error.message) from error
  if sources.POSITION in dataset.element_spec:
    rows.sort(key=lambda row: row[sources.POSITION].tolist())
  else:
    logging.warning(
      'The rows of %s come in the order of its cache, because they have no %r.',
      *(task.name, sources.POSITION),
    )
  return iter(rows)


def _has_rows(task: seqio.Task, split: str) -> bool:
  """Whether a cached split has rows; checks that no file of it is missing.

  For an empty split SeqIO writes an empty description, which it cannot read.
  """
  folder = task.cache_dir
  path = seqio.get_cached_info_path(folder, split)
  if not tf.io.gfile.exists(path):
    raise errors.DataError(
      f'The cache {folder} has no split {split!r}: there is no {path}.'
      f' {_make(task)}'
    )
  info = json_documents.load(path, dict)
  if not info:
    return False
  prefix = seqio.get_cached_tfrecord_prefix(folder, split)
  count = schemas.make(
    _Info, info, path, error=errors.DataError, remedy=_make(task)
  ).num_shards
  found = tf.io.gfile.glob(f'{prefix}-*-of-{count:05d}')
  if len(found) != count:
    raise errors.DataError(
      f'The cache {folder} is incomplete: {len(found)} of {count} files'
      f' {prefix}-* are there. Copy it again, or rebuild it. {_make(task)}'
    )
  try:
    for name in found:
      # TensorFlow does not check the length that a record declares.
      tfrecord_rows.check_lengths(name)
  except errors.DataError as error:
    raise _damaged(task, str(error)) from error
  return True


def _damaged(task: seqio.Task, reason: str) -> errors.DataError:
  return errors.DataError(
    f'A file of the cache {task.cache_dir} is damaged ({reason}). {_make(task)}'
  )


def _no_cache(task: seqio.Task) -> str:
  folders = seqio.get_global_cache_dirs()
  if folders:
    found = f'has no complete cache in {" or ".join(folders)}'
  else:
    found = f'is to be read from a cache, but {CACHE_DIR_VARIABLE} is not set'
  return (
    f'Task {task.name!r} {found}. Set {CACHE_DIR_VARIABLE} to the folder of the'
    ' caches, local or gs://, or set USE_CACHED_TASKS to False, or make the'
    f' cache. {_make(task)}'
  )


def _make(task: seqio.Task) -> str:
  """Returns the instructions for making the cache of a task."""
  folder = os.environ.get(CACHE_DIR_VARIABLE) or 'FOLDER'
  module = getattr(task.source, 'module', None)
  if module in (None, 'builtins', '__main__'):
    module = 'MODULE_THAT_REGISTERS_IT'
  return (
    f'Make it with: seqio_cache_tasks --tasks={task.name}'
    f' --output_cache_dir={folder} --module_import={module}'
    ' --pipeline_options=--runner=FnApiRunner --overwrite'
  )
