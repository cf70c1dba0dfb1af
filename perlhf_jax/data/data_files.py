"""Finds the files of a task in a data directory, or reports missing ones."""

from collections.abc import Sequence
import difflib
import itertools
import os

import tensorflow as tf

from perlhf_jax.core import errors

# Alternative glob patterns of one group of files: users store the same files
# in different places.
Patterns = Sequence[str]


def find(
  root: str,
  layouts: Sequence[Sequence[Patterns]],
  given_by: str,
  location: str,
  origin: str,
) -> tuple[int, list[list[str]]]:
  """Finds the first layout whose groups all have a file.

  Args:
    root: the data directory, local or `gs://`.
    layouts: patterns of each group of each layout.
    given_by: the setting that named the directory, for messages.
    location: the files to look for, for messages.
    origin: a sentence that says where to get the data; empty if unknown.

  Returns:
    The index of the layout, and the paths of each of its groups.

  Raises:
    DataError: the directory or a file does not exist.
  """
  if not tf.io.gfile.isdir(root):
    is_there = tf.io.gfile.exists(root)
    what = 'is a file, not a directory' if is_there else 'does not exist'
    raise errors.DataError(
      f'The data directory {_whole(root)!r} ({given_by}) {what}. Set'
      f' {given_by} to the directory that holds {location}. {origin}'.rstrip()
    )
  for index, layout in enumerate(layouts):
    found = [_first_match(root, patterns) for patterns in layout]
    if all(found):
      return index, found
  remedy = origin or 'Put the files there, or name the directory with them.'
  remedy = f'{_near(root, layouts)}{remedy}'
  raise errors.DataError(
    f'No data under {_whole(root)!r} ({given_by}): looked for'
    f' {location}. {remedy}'
  )


def _first_match(root: str, patterns: Patterns) -> list[str]:
  for pattern in patterns:
    paths = sorted(tf.io.gfile.glob(os.path.join(root, pattern)))
    for path in paths:
      # Buckets have no folders, and a request per file would take long.
      if '://' not in path and os.path.isdir(path):
        raise errors.DataError(
          f'{path} is a folder, not a file: name the file, or write'
          f' {os.path.basename(path)}/*.jsonl for all files in it.'
        )
    if paths:
      return paths
  return []


def _near(root: str, layouts: Sequence[Sequence[Patterns]]) -> str:
  """Suggests an existing file that may be meant."""
  groups = itertools.chain.from_iterable(layouts)
  for pattern in itertools.chain.from_iterable(groups):
    folder, name = os.path.split(os.path.join(root, pattern))
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else ()
    names = [each for each in names if each != name]  # Such as a dead link.
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
      return f'Did you mean {near[0]}? '
  return ''


def _whole(path: str) -> str:
  return path if '://' in path else os.path.abspath(path)
