"""SeqIO sources of preference data: JSON files, and Python functions.

Sources yield text features, perhaps images, and three more: `origin`, where a
row came from (`file:line`), `problem`, what is wrong with it (empty if nothing
is), and `position`, which file and row it is, by which a cached task is put
back in order. An unusable row flows on to the loader, which knows whether to
stop or to skip it; it must not raise inside TensorFlow, where the message would
drown.

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
from perlhf_jax.data import own_functions
from perlhf_jax.data import row_checks

DATA_DIR_VARIABLE = 'PERLHF_DATA_DIR'
POSITION = 'position'

# A record to the features of its example, or of several; None leaves the
# record out of the task. `split_key` among the features is hashed for the split
# in the place of the prompt.
Features = own_functions.Features
Parse = Callable[[dict[str, Any]], Features | list[Features] | None]
SPLIT_KEY = 'split_key'
# A path to the records of a file.
Read = Callable[[str], Iterator[json_rows.Row]]
# A path to the function that names the split of each record of the file.
FindSplits = Callable[[str], Callable[[dict[str, Any]], str]]
# A name, and features, `origin` and `problem` of each row, read on demand.
Shard = tuple[str, Iterator[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What a user must know about a data set: shown by `perlhf tasks`.

  Attributes:
    description: one line.
    homepage: where to get it.
    licence: under which terms.
    files: where its files go, for people; by default the patterns that are
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
    any_of: glob patterns below the data directory, for the places where
      people put the same files; the first that matches anything is read.
    splits: share of the prompts that goes to each split, by a hash of the
      prompt. `{'test': 1.0}` takes the whole file. Where a `find_splits` says
      where records belong, their names alone count.
  """

  any_of: tuple[str, ...]
  splits: Mapping[str, float]


def split_by_hash(key: str, fractions: Mapping[str, float]) -> str:
  """The split of everything that shares `key`.

  Depends on the key and the fractions alone: not on the other rows, their
  order, the machine or the Python process.
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
  """A source whose rows are made in Python, one kind of task at a time.

  Attributes:
    kind: sft, pairwise, pointwise or prompts.
    info: source and licence.
    module: name of the module that registers the task, as far as the function
      that makes the rows tells it.
    lists: the list features, see `row_checks.list_features`.
  """

  def __init__(
    self,
    kind: str,
    splits: Iterable[str],
    info: DatasetInfo,
    module: str | None = None,
    lists: Sequence[str] = (),
  ):
    super().__init__(splits=splits)
    self.kind = kind
    self.lists = tuple(lists)
    self.info = info
    self.module = module

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """False: a shard is never divided."""
    return False

  @abc.abstractmethod
  def shards(self, split: str) -> list[Shard]:
    """The parts of a split, in order, that machines may read apart."""

  @abc.abstractmethod
  def why_empty(self, split: str) -> str:
    """Says, as a sentence, why a split that was read has no row."""

  def _complete(
    self, features: Features, origin: str, problem: str
  ) -> dict[str, Any]:
    """A row with every column, checked."""
    text = row_checks.TEXT_FEATURES[self.kind]
    numbers = row_checks.NUMBER_FEATURES[self.kind]
    row = {name: features.get(name) for name in (*text, *self.lists)}
    for name, default in numbers.items():
      row[name] = features.get(name, default)
    found = row_checks.find_problem(self.kind, row, self.lists)
    problem = problem or found or ''
    if problem:
      # Only what TensorFlow can hold; the message says the rest.
      row = {name: _as_text(value) for name, value in row.items()}
      row |= dict.fromkeys(numbers, 0.0) | dict.fromkeys(self.lists, ())
    return {**row, 'origin': origin, 'problem': problem}

  def list_shards(self, split: str) -> Sequence[str]:
    """Names of the shards of a split."""
    return [name for name, _ in self.shards(split)]

  def rows(self, split: str) -> Iterator[dict[str, Any]]:
    """Features, `origin` and `problem` of each row of a split."""
    for _, rows in self.shards(split):
      yield from rows

  @property
  def location(self) -> str:
    """Where the files go, for people."""
    return 'built in'

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None, **_
  ) -> tf.data.Dataset:
    """The rows of a split, in order; SeqIO shuffles afterwards if asked.

    Args:
      split: which split.
      shuffle: is SeqIO's, and without effect here.
      seed: likewise.
      shard_info: reads only the shards `index`, `index + num_shards`, ...

    Raises:
      ValueError: there are fewer shards than are asked for.
    """
    shards = self.shards(split)
    index, step = 0, 1
    if shard_info:
      index, step = shard_info.index, shard_info.num_shards
      if step > len(shards):
        raise ValueError(
          f'Split {split!r} has {len(shards)} shards, fewer than {step}.'
        )
    text = [*row_checks.TEXT_FEATURES[self.kind], 'origin', 'problem']
    numbers = list(row_checks.NUMBER_FEATURES[self.kind])
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
    layouts: alternative sets of files. The first of them of which every
      group has a file is read; each is a sequence of `FileGroup`.
    parse: makes examples of a record.
    base_dir: the data directory, local or `gs://`; by default what the
      environment variable PERLHF_DATA_DIR says when data is read.
    read: reads a file.
    find_splits: for data sets that say to which split each record belongs, in
      the place of a hash: by a field, or in a file of their own. A record for
      which it raises a ValueError or KeyError, or names a split that its group
      has not, is unusable.
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
    lists: Sequence[str] = (),
    find_splits: FindSplits | None = None,
  ):
    splits = dict.fromkeys(
      split for layout in layouts for group in layout for split in group.splits
    )
    module = getattr(parse, '__module__', None)
    super().__init__(kind, splits, info, module, lists)
    self.layouts = layouts
    self.base_dir = base_dir
    self.read = read
    self.find_splits = find_splits
    self.parse = parse

  @property
  def location(self) -> str:
    """Where the files go under the data directory, for people."""
    files = self.info.files or ' or '.join(
      ' and '.join(' | '.join(group.any_of) for group in layout)
      for layout in self.layouts
    )
    return f'{files} in {self.base_dir}' if self.base_dir else files

  def shards(self, split: str) -> list[Shard]:
    """One shard a file that holds rows of the split, unreadable ones included.

    Raises:
      DataError: there is no data directory or no file in it; when a shard is
        read, an array file is not JSON.
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
    # SeqIO refuses to cache a task of which a split has no shard.
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
            f'the split is {its_split!r}, none of {", ".join(fractions)}'
          )
        if problem:
          its_split, row = None, row._replace(problem=problem)
      for key, example in self._examples(row):
        # A row without a prompt could belong anywhere; each run sees it.
        hashed = split_by_hash(key, fractions) if key else split
        if (its_split or hashed) == split:
          yield example

  def _examples(self, row: json_rows.Row) -> Iterator[tuple[str, dict]]:
    """What decides the split of each example of a record, and the example."""
    several, problem = [{}], row.problem
    if not problem:
      made, problem = own_functions.attempt(self.parse, row.record)
      if not problem:
        several = own_functions.examples_of(
          self.parse, made, self.kind, self.lists, row
        )
    for each in several:
      example = self._complete(each, row.origin, problem)
      # The prompt of an unusable row may be no text.
      yield str(each.get(SPLIT_KEY, example['inputs'])), example

  def why_empty(self, split: str) -> str:
    """Says why a split has no row; reads the files once more."""
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
      return 'none of the files that were found has rows of it'
    if not count:
      return f'there is no record in {where}'
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
    """The groups that a split is read from, with their files, in order.

    Raises:
      DataError: there is no data directory, or no layout is complete in it.
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
  """Rows that a Python function makes, for generated or converted data."""

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
      row_checks.list_features(kind, images, references),
    )
    self._make_rows = make_rows

  def shards(self, split: str) -> list[Shard]:
    """One shard a split: the function makes all its rows."""
    return [(split, self._made_rows(split))]

  def why_empty(self, split: str) -> str:
    """Says that the function made nothing."""
    return f'{user_code.place_of(self._make_rows)} made no row of it'

  def _made_rows(self, split: str) -> Iterator[dict[str, Any]]:
    """Calls the function; a row's origin is its number."""
    for index, features in enumerate(self._make(split)):
      origin = f'{split}#{index}'
      own_functions.check_names(
        self._make_rows, features, self.kind, self.lists, origin
      )
      yield self._complete(features, origin, '')

  def _make(self, split: str) -> Iterator[Any]:
    """Calls the function, whatever it gives; its mistakes name it."""
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
  """Lists of different lengths as TensorFlow holds them."""
  items = [item for row in rows for item in row]
  return tf.RaggedTensor.from_row_lengths(
    tf.constant(items, tf.string, shape=[len(items)]),
    np.array([len(row) for row in rows], np.int64),
  )


def _as_text(value: Any) -> str:
  if not isinstance(value, str):
    return ''
  return value.encode('utf-8', 'replace').decode('utf-8')
