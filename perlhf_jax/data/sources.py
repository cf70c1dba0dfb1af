"""SeqIO sources of preference data: JSON files, and Python functions.

Sources yield text features, perhaps images, and three more features: `origin`,
where a row came from (`file:line`); `problem`, why it is unusable (empty if it
is usable); and `position`, the numbers of its file and row, which sort a cached
task again. An unusable row is passed on to the loader, which stops or skips the
row; an error inside TensorFlow would have an unreadable message.

Paths are looked up when data is read, not when a task is registered, so that
importing all tasks needs no data.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import os
from typing import Any

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.core import user_code
from perlhf_jax.data import data_files
from perlhf_jax.data import json_rows
from perlhf_jax.data import kinds
from perlhf_jax.data import own_functions
from perlhf_jax.data import row_checks

DATA_DIR_VARIABLE = 'PERLHF_DATA_DIR'
POSITION = 'position'

# Maps a record to the features of one or several examples; None leaves the
# record out of the task. If the features have `split_key`, it is hashed for the
# split in place of the prompt.
Features = own_functions.Features
Parse = Callable[[dict[str, Any]], Features | list[Features] | None]
SPLIT_KEY = 'split_key'
# Maps a path to the records of the file.
Read = Callable[[str], Iterator[json_rows.Row]]
# Maps a path to a function that returns the split of a record of the file.
FindSplits = Callable[[str], Callable[[dict[str, Any]], str]]
# A name, and lazily the features, `origin` and `problem` of each row.
Shard = tuple[str, Iterator[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """Information on a data set, shown by `perlhf tasks`.

  Attributes:
    description: one line of text.
    homepage: address where the data can be found.
    licence: licence of the data.
    files: where to put the files, as text; by default the patterns that are
      searched.
  """

  description: str = ''
  homepage: str = ''
  licence: str = ''
  files: str = ''


@dataclasses.dataclass(frozen=True)
class FileGroup:
  """Files that are split in the same way.

  Attributes:
    any_of: alternative glob patterns below the data directory, for the places
      where users put the same files; the first that matches anything is read.
    splits: share of the prompts in each split, chosen by a hash of the prompt.
      `{'test': 1.0}` takes the whole file. If `find_splits` is given, only the
      names of the splits matter.
  """

  any_of: tuple[str, ...]
  splits: Mapping[str, float]


def split_by_hash(key: str, fractions: Mapping[str, float]) -> str:
  """Returns the split of all examples with the key `key`.

  It depends only on the key and the fractions: not on other rows, their order,
  the machine or the Python process.
  """
  if len(fractions) == 1:
    return next(iter(fractions))
  digest = hashlib.sha256(key.encode('utf-8', 'surrogatepass')).digest()
  position = int.from_bytes(digest[:8], 'big') / 2**64 * sum(fractions.values())
  for split, fraction in fractions.items():
    position -= fraction
    if position < 0:
      return split
  return list(fractions)[-1]


class TextSource(seqio.DataSource):
  """A source whose rows are made in Python, for one kind of task.

  Attributes:
    kind: kind of the task.
    info: source and licence.
    module: name of the module that defines the function that makes the rows.
    lists: list features: `images`, `references`, or both.
  """

  def __init__(
    self,
    kind: str,
    splits: Iterable[str],
    info: DatasetInfo,
    module: str | None = None,
    *,
    images: bool = False,
    references: bool = False,
  ):
    super().__init__(splits=splits)
    self.kind = kinds.named(kind, f'A {type(self).__name__}')
    self.lists = self.kind.declare(images=images, references=references)
    self.info = info
    self.module = module

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Returns False: a shard is never divided."""
    return False

  @abc.abstractmethod
  def shards(self, split: str) -> list[Shard]:
    """Returns the shards of a split in order; machines may read them apart."""

  @abc.abstractmethod
  def why_empty(self, split: str) -> str:
    """Returns why a split has no rows, after reading it."""

  def _complete(
    self, features: Features, origin: str, problem: str
  ) -> dict[str, Any]:
    """Returns a row with every column, checked."""
    numbers = self.kind.numbers
    row = {name: features.get(name) for name in (*self.kind.texts, *self.lists)}
    for name, number in numbers.items():
      row[name] = features.get(name, number.default)
    found = row_checks.find_problem(self.kind, row, self.lists)
    problem = problem or found or ''
    if problem:
      # An unusable row keeps only values that TensorFlow can hold.
      row = {name: _as_text(value) for name, value in row.items()}
      row |= dict.fromkeys(numbers, 0.0) | dict.fromkeys(self.lists, ())
    return {**row, 'origin': origin, 'problem': problem}

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the names of the shards of a split."""
    return [name for name, _ in self.shards(split)]

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    """Yields features, `origin` and `problem` of each row of a split."""
    for _, rows in self.shards(split):
      yield from rows

  @property
  def location(self) -> str:
    """Returns where to put the files, as text."""
    return 'built in'

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None, **_
  ) -> tf.data.Dataset:
    """Returns the rows of a split in order; SeqIO shuffles them afterwards.

    Args:
      split: name of the split.
      shuffle: SeqIO's argument, ignored here.
      seed: likewise.
      shard_info: reads only the shards `index`, `index + num_shards`, ...

    Raises:
      ValueError: the split has fewer shards than `shard_info` asks for.
    """
    shards = self.shards(split)
    index, step = 0, 1
    if shard_info:
      index, step = shard_info.index, shard_info.num_shards
      if step > len(shards):
        raise ValueError(
          f'Split {split!r} has {len(shards)} shards, fewer than {step}.'
        )
    text = [*self.kind.texts, 'origin', 'problem']
    numbers = list(self.kind.numbers)
    columns = {name: [] for name in (*text, *numbers, *self.lists)}
    positions = []
    for shard in range(index, len(shards), step):
      for number, row in enumerate(shards[shard][1]):
        positions.append((shard, number))
        for name, column in columns.items():
          column.append(row[name])
    return tf.data.Dataset.from_tensor_slices(
      {name: tf.constant(columns[name], tf.string) for name in text}
      | {name: tf.constant(columns[name], tf.float32) for name in numbers}
      | {name: _ragged(columns[name]) for name in self.lists}
      | {POSITION: np.array(positions, np.int64).reshape(-1, 2)}
    )


class FileSource(TextSource):
  """Rows of JSON files: `.jsonl`, `.jsonl.gz`, or an array in a `.json`.

  Attributes:
    layouts: alternative sets of files, each a sequence of `FileGroup`. The
      first layout whose groups all have a file is read.
    parse: makes examples of a record.
    base_dir: the data directory, local or `gs://`; by default the value of the
      environment variable PERLHF_DATA_DIR when data is read.
    read: reads a file.
    find_splits: in place of a hash, for data sets that assign records to splits
      in a field or in a file. A record is unusable if it raises a ValueError or
      KeyError for it, or returns a split that the record's group does not have.
  """

  def __init__(
    self,
    kind: str,
    layouts: Sequence[Sequence[FileGroup]],
    parse: Parse,
    info: DatasetInfo,
    base_dir: str | None = None,
    *,
    read: Read = json_rows.read,
    images: bool = False,
    references: bool = False,
    find_splits: FindSplits | None = None,
  ):
    splits = dict.fromkeys(
      split for layout in layouts for group in layout for split in group.splits
    )
    module = getattr(parse, '__module__', None)
    super().__init__(
      kind, splits, info, module, images=images, references=references
    )
    self.layouts = layouts
    self.base_dir = base_dir
    self.read = read
    self.find_splits = find_splits
    self.parse = parse

  @property
  def location(self) -> str:
    """Returns where to put the files in the data directory, as text."""
    files = self.info.files or ' or '.join(
      ' and '.join(' | '.join(group.any_of) for group in layout)
      for layout in self.layouts
    )
    return f'{files} in {self.base_dir}' if self.base_dir else files

  def shards(self, split: str) -> list[Shard]:
    """Returns one shard per file with rows of the split, or unreadable rows.

    Raises:
      DataError: the data directory or a file in it does not exist; when a shard
        is read, an array file is not JSON.
    """
    groups = self.files(split)
    by = 'the data set itself' if self.find_splits else 'a hash of the prompt'
    for group, paths in groups:
      logging.info(
        'Reading %d file(s) from %s, split by %s: %s',
        *(len(paths), paths[0], by, dict(group.splits)),
      )
    found = [
      (path, self._file_rows(path, group.splits, split))
      for group, paths in groups
      for path in paths
    ]
    # SeqIO refuses to cache a task if one of its splits has no shard.
    return found or [(split, iter(()))]

  def _file_rows(
    self, path: str, fractions: Mapping[str, float], split: str
  ) -> Iterator[dict[str, Any]]:
    split_of = self.find_splits(path) if self.find_splits else None
    for row in self.read(path):
      its_split = None
      if split_of and not row.problem:
        its_split, problem = own_functions.attempt(split_of, row.record)
        if not problem and its_split not in fractions:
          problem = (
            f'the split is {its_split!r}, not one of {", ".join(fractions)}'
          )
        if problem:
          its_split, row = None, row._replace(problem=problem)
      for key, example in self._examples(row):
        # A row without a prompt is reported in every split.
        hashed = split_by_hash(key, fractions) if key else split
        if (its_split or hashed) == split:
          yield example

  def _examples(self, row: json_rows.Row) -> Iterator[tuple[str, dict]]:
    """Yields the split key and the example of each example of a record."""
    several, problem = [{}], row.problem
    if not problem:
      made, problem = own_functions.attempt(self.parse, row.record)
      if not problem:
        several = own_functions.examples_of(
          self.parse, made, self.kind, self.lists, row
        )
    for each in several:
      example = self._complete(each, row.origin, problem)
      # The prompt of an unusable row may not be text.
      yield str(each.get(SPLIT_KEY, example[kinds.INPUTS])), example

  def why_empty(self, split: str) -> str:
    """Returns why a split has no rows; reads the files again."""
    paths, count, left_out = [], 0, 0
    for _, found in self.files(split):
      paths += found
    for path in paths:
      for row in self.read(path):
        count += 1
        made = own_functions.attempt(self.parse, row.record)[0]
        left_out += made is None or made == []
    where = paths[0] if len(paths) == 1 else f'{len(paths)} files'
    where = f'{where} ({", ".join(paths[:3])}, …)' if len(paths) > 1 else where
    if not paths:
      return 'none of the files has rows of this split'
    if not count:
      return f'{where} has no records'
    parse = user_code.place_of(self.parse)
    if left_out == count:
      return (
        f'{parse} left out all {count} records of {where}, since it returned'
        ' None for each (is a return missing?)'
      )
    others = f'the other {count - left_out} belong to other splits'
    if left_out:
      return f'{parse} left out {left_out} records of {where}, and {others}'
    return f'all {count} records of {where} belong to other splits'

  def files(self, split: str) -> list[tuple[FileGroup, list[str]]]:
    """Returns the groups of a split with their files, in order.

    Raises:
      DataError: the data directory does not exist, or has no complete layout.
    """
    if not self.base_dir and not os.environ.get(DATA_DIR_VARIABLE):
      raise errors.DataError(
        f'This task reads files ({self.location}), but {DATA_DIR_VARIABLE} is'
        ' not set. Set it to the directory that holds them:'
        f' export {DATA_DIR_VARIABLE}=/the/directory. {self._origin()}'.rstrip()
      )
    index, found = data_files.find(
      self.base_dir or os.environ[DATA_DIR_VARIABLE],
      [[group.any_of for group in layout] for layout in self.layouts],
      'base_dir of the task' if self.base_dir else DATA_DIR_VARIABLE,
      self.location,
      self._origin(),
    )
    groups = zip(self.layouts[index], found, strict=True)
    return [each for each in groups if split in each[0].splits]

  def _origin(self) -> str:
    info = self.info
    if not info.homepage:
      return ''
    licence = f' (licence: {info.licence})' if info.licence else ''
    return f'Get {info.description or "it"} from {info.homepage}{licence}.'


class PythonSource(TextSource):
  """A source of rows that a Python function makes, such as generated data."""

  def __init__(
    self,
    kind: str,
    splits: Iterable[str],
    make_rows: Callable[[str], Iterable[Mapping[str, Any]]],
    info: DatasetInfo,
    *,
    images: bool = False,
    references: bool = False,
  ):
    super().__init__(
      kind,
      splits,
      info,
      getattr(make_rows, '__module__', None),
      images=images,
      references=references,
    )
    self._make_rows = make_rows

  def shards(self, split: str) -> list[Shard]:
    """Returns one shard per split: the function makes all its rows."""
    return [(split, self._made_rows(split))]

  def why_empty(self, split: str) -> str:
    """Returns that the function made no rows."""
    return f'{user_code.place_of(self._make_rows)} made no rows'

  def _made_rows(self, split: str) -> Iterator[dict[str, Any]]:
    """Yields the function's rows; a row's origin is its number."""
    for index, features in enumerate(self._make(split)):
      origin = f'{split}#{index}'
      own_functions.check_names(
        self._make_rows, features, self.kind, self.lists, origin
      )
      yield self._complete(features, origin, '')

  def _make(self, split: str) -> Iterator[Any]:
    """Yields the function's results unchecked; its errors name it."""
    place = user_code.place_of(self._make_rows)
    try:
      made = self._make_rows(split)
      if isinstance(made, Iterable) and not isinstance(made, Mapping | str):
        yield from made
        return
    except errors.UserError:
      raise
    except Exception as error:
      raise errors.DataError(
        f'{place} raised {user_code.describe(error)}.'
      ) from error
    raise errors.DataError(
      f'{place} returned a {type(made).__name__} for the split {split!r}; it'
      ' must give the examples one after the other, each a dict: as a list, or'
      ' by yield.'
    )


def _ragged(rows: Sequence[Sequence[str | bytes]]) -> tf.RaggedTensor:
  """Converts lists of different lengths to a ragged tensor."""
  items = [item for row in rows for item in row]
  return tf.RaggedTensor.from_row_lengths(
    tf.constant(items, tf.string, shape=[len(items)]),
    np.array([len(row) for row in rows], np.int64),
  )


def _as_text(value: Any) -> str:
  if not isinstance(value, str):
    return ''
  return value.encode('utf-8', 'replace').decode('utf-8')
