"""Reads a task: checks, tokenises and truncates its rows in chunks.

While a thread tokenises one chunk, the next ones are read. The results, and the
error that stops the reading, are the same as with one row at a time.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import itertools
from typing import Any
import zlib

import numpy as np
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import kinds
from perlhf_jax.data import row_stream
from perlhf_jax.data import task_rows
from perlhf_jax.data import token_columns
from perlhf_jax.data import token_ids
from perlhf_jax.data import tokenizing

_CHUNK = 256  # Rows that are tokenised together.
_AHEAD = 2  # Chunks that are read ahead.

Row = Mapping[str, Any]


class TaskReader:
  """Reads tasks with the configuration of one run.

  Attributes:
    config: configuration of the data set.
    vocabulary: the run's tokenizer.
    converter: converter that cuts texts; it has the kind of the tasks.
    image_spec: number of images per example; None for tasks without images.
  """

  def __init__(
    self,
    config: dataset_config.DatasetConfig,
    vocabulary: seqio.Vocabulary,
    converter: feature_converters.Converter,
    image_spec: images.ImageSpec | None,
  ):
    self.config = config
    self.vocabulary = vocabulary
    self.converter = converter
    self.image_spec = image_spec
    self._text = tuple(converter.kind.texts)
    self._numbers = tuple(converter.kind.numbers)

  def read(self, task: seqio.Task) -> task_rows.TaskRows:
    """Reads a task.

    Raises:
      ConfigError: the task does not fit the configuration.
      DataError: files are missing, or a row is unusable.
    """
    encode = self._strip_eos if self._is_tokenised(task) else self._tokenise
    lists = tuple(n for n in kinds.LISTS if n in task.output_features)
    parts = [self._empty(lists)]
    rows = row_stream.read(task, self.config, self.converter.kind)
    for chunk, tokens in _ahead(_chunks(rows), encode):
      done = sum(map(len, parts))
      parts.append(self._part(chunk, tokens, lists, done))
      if done + len(parts[-1]) == self.config.max_examples:
        break
    return self._without_bad_images(task_rows.joined(parts))

  def _empty(self, lists: Sequence[str]) -> task_rows.TaskRows:
    return task_rows.TaskRows(
      tokens={name: token_columns.TokenColumn([]) for name in self._text},
      numbers={name: np.zeros(0, np.float32) for name in self._numbers},
      lists={name: [] for name in lists},
      origins=[],
    )

  def _part(
    self,
    chunk: '_Chunk',
    tokens: Mapping[str, Sequence[np.ndarray]],
    lists: Sequence[str],
    done: int,
  ) -> task_rows.TaskRows:
    """Makes examples of a chunk of rows.

    Args:
      chunk: rows, and perhaps the error that follows them.
      tokens: tokens of the usable rows, by text feature.
      lists: names of the list features.
      done: number of examples so far.
    """
    part = self._empty(lists)
    texts = {name: [] for name in self._text}
    numbers = {name: [] for name in self._numbers}
    left = None
    if self.config.max_examples is not None:
      left = self.config.max_examples - done
    encoded = zip(*tokens.values(), self._bad_ids(tokens), strict=True)
    for row in chunk.rows:
      if len(part) == left:
        break
      part.num_read += 1
      origin = row['origin']
      if row['problem']:
        self._skip_or_stop(part, origin, row['problem'])
        continue
      *columns, bad_id = next(encoded)
      if bad_id:
        self._skip_or_stop(part, origin, bad_id)
        continue
      example = dict(zip(self._text, columns, strict=True))
      if not self._is_in_part(example):
        continue
      cut = self._cut(example, origin)
      for name, rows in texts.items():
        rows.append(cut[name])
        if len(cut[name]) < len(example[name]):
          part.truncated[name] += 1
      for name, values in numbers.items():
        values.append(row.get(name, 0.0))
      for name, values in part.lists.items():
        values.append(self._list(name, row))
      part.origins.append(origin)
    else:
      if chunk.error is not None and len(part) != left:
        raise chunk.error
    part.tokens = {n: token_columns.TokenColumn(v) for n, v in texts.items()}
    part.numbers = {n: np.asarray(v, np.float32) for n, v in numbers.items()}
    return part

  def _bad_ids(
    self, tokens: Mapping[str, Sequence[np.ndarray]]
  ) -> list[str | None]:
    """Returns a message for each row with a token id that does not exist."""
    num_ids = self.vocabulary.vocab_size
    problems: list[str | None] = [None] * len(tokens['inputs'])
    for name, rows in tokens.items():
      what = f'the {self.converter.kind.texts[name].what} ({name})'
      for index, bad in token_ids.find_bad(rows, num_ids):
        problems[index] = problems[index] or token_ids.describe(
          bad, what, num_ids, 'the vocabulary'
        )
    return problems

  def _tokenise(self, chunk: '_Chunk') -> dict[str, list[np.ndarray]]:
    rows = [row for row in chunk.rows if not row['problem']]
    return {
      name: tokenizing.encode_all(self.vocabulary, [row[name] for row in rows])
      for name in self._text
    }

  def _strip_eos(self, chunk: '_Chunk') -> dict[str, list[np.ndarray]]:
    """Makes each feature of rows that SeqIO tokenised end with one EOS."""
    rows = [row for row in chunk.rows if not row['problem']]
    eos = np.int32(feature_converters.EOS_ID)
    return {
      name: [
        np.append(feature_converters.strip_eos(row[name]), eos) for row in rows
      ]
      for name in self._text
    }

  def _is_in_part(self, example: Row) -> bool:
    if self.config.part is None:
      return True
    index, count = self.config.part
    return zlib.crc32(example['inputs'].tobytes()) % count == index

  def _cut(self, example: Row, origin: str) -> Row:
    """Cuts the texts of an example that are too long."""
    converter = self.converter
    prompt, limit = len(example['inputs']), converter.prompt_length
    if prompt > limit and self.config.refuse_long_prompts:
      raise errors.DataError(
        f'{self.config.mixture_or_task_name}, {origin}: the prompt has'
        f" {prompt} tokens, and TASK_FEATURE_LENGTHS['inputs'] is {limit}."
        ' Raise it, or set REFUSE_LONG_PROMPTS to False to have prompts cut.'
      )
    return converter.cut(example)

  def _list(self, name: str, row: Row) -> list:
    """Returns a list feature of a row."""
    values = row[name]
    if name != kinds.IMAGES:
      return list(values)
    if len(values) > self.image_spec.count:
      raise errors.DataError(
        f'{row["origin"]}: the example has {len(values)} images, more than'
        f" {self.image_spec.count}. Set TASK_FEATURE_LENGTHS['images'] to"
        ' the most that an example has.'
      )
    return [
      each if isinstance(each, str) else images.from_task(each)
      for each in values
    ]

  def _without_bad_images(self, rows: task_rows.TaskRows) -> task_rows.TaskRows:
    """Leaves out rows with unusable images, or stops at the first."""
    column = rows.lists.get(kinds.IMAGES, [])
    problems = images.find_problems(
      list(dict.fromkeys(image for row in column for image in row))
    )
    if not problems:
      return rows
    good = []
    for index, row in enumerate(column):
      bad = [image for image in row if image in problems]
      if bad:
        self._skip_or_stop(rows, rows.origins[index], problems[bad[0]])
      else:
        good.append(index)
    return rows.only(good)

  def _skip_or_stop(self, rows: task_rows.TaskRows, origin: str, problem: str):
    if not self.config.skip_bad_rows:
      raise errors.DataError(
        f'{origin}: {problem}. Fix or remove the row, or leave out all such'
        ' rows with --gin.SKIP_BAD_ROWS=True (DatasetConfig.skip_bad_rows),'
        ' which counts and reports them.'
      )
    rows.skip(origin, problem)

  def _is_tokenised(self, task: seqio.Task) -> bool:
    """Whether a task yields tokens of the run's vocabulary."""
    dtypes = {
      name: tf.as_dtype(task.output_features[name].dtype) for name in self._text
    }
    if all(dtype == tf.string for dtype in dtypes.values()):
      return False
    for name, dtype in dtypes.items():
      feature = task.output_features[name]
      if dtype not in (tf.int32, tf.int64):
        raise errors.DataError(
          f'Feature {name!r} of task {task.name!r} has dtype {dtype.name}; it'
          ' must be text (tf.string), or tokens (tf.int32), as must all others'
          ' of the task.'
        )
      if not self.vocabulary == feature.vocabulary:
        raise errors.DataError(
          f'Task {task.name!r} tokenises {name!r} with {feature.vocabulary},'
          f' but the run has {self.vocabulary}. Give both the same'
          ' vocabulary, or let the task yield text (tf.string), which serves'
          ' every vocabulary.'
        )
    return True


class _Chunk:
  """Consecutive rows, and the error that followed them, if any."""

  def __init__(self):
    self.rows: list[Row] = []
    self.error: Exception | None = None


def _chunks(rows: Iterator[Row]) -> Iterator[_Chunk]:
  """Yields chunks of rows; an error ends the last one, and is not raised."""
  while True:
    chunk = _Chunk()
    try:
      for row in itertools.islice(rows, _CHUNK):
        chunk.rows.append(row)
    except Exception as error:
      chunk.error = error
    yield chunk
    if chunk.error is not None or len(chunk.rows) < _CHUNK:
      return


def _ahead(chunks: Iterable[_Chunk], encode) -> Iterator[tuple[_Chunk, Any]]:
  """Yields chunks with the results of `encode`, which runs in a thread."""
  executor = futures.ThreadPoolExecutor(1, thread_name_prefix='tokens')
  try:
    queue = deque()
    for chunk in chunks:
      queue.append((chunk, executor.submit(encode, chunk)))
      if len(queue) > _AHEAD:
        chunk, tokens = queue.popleft()
        yield chunk, tokens.result()
    for chunk, tokens in queue:
      yield chunk, tokens.result()
  finally:
    executor.shutdown(wait=False, cancel_futures=True)
