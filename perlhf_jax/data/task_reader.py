"""Reads tasks row by row: checks, tokenises, truncates and collects."""

from collections import Counter
from collections.abc import Mapping
from typing import Any
import zlib

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import cached_tasks
from perlhf_jax.data import dataset_config
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import row_checks
from perlhf_jax.data import sources

_REASONS_SHOWN = 5


class TaskReader:
  """Collects the tokens of the tasks that are read into it."""

  def __init__(
    self,
    config: dataset_config.DatasetConfig,
    vocabulary: seqio.Vocabulary,
    kind: str,
    converter: feature_converters.Converter,
    image_spec: images.ImageSpec | None,
  ):
    self._config = config
    self._vocabulary = vocabulary
    self._kind = kind
    self._converter = converter
    text = row_checks.TEXT_FEATURES[kind]
    numbers = row_checks.NUMBER_FEATURES[kind]
    self._image_spec = image_spec
    self._tokens = {name: [] for name in text}
    self.lists: dict[str, list[list]] = {}
    self._numbers = {name: [] for name in numbers}
    self.origins: list[str] = []
    self.reasons = Counter()
    self.truncated = Counter()
    self._first_bad: dict[str, str] = {}
    self._tasks: list[seqio.Task] = []
    self._num_read = 0

  def read(self, task: seqio.Task) -> int:
    """Adds the rows of a task; returns how many."""
    config = self._config
    self._tasks.append(task)
    tokenised = self._check_features(task)
    if config.use_cached:
      rows = cached_tasks.read(task, config.split, config.seed)
    else:
      rows = task.get_dataset(
        sequence_length=None,
        split=config.split,
        shuffle=False,
        seed=config.seed,
        num_epochs=1,
        trim_output_features=False,
      ).as_numpy_iterator()
    for name in (row_checks.IMAGES, row_checks.REFERENCES):
      if name in task.output_features:
        self.lists.setdefault(name, [])
    before = len(self.origins)
    for index, row in enumerate(rows):
      if len(self.origins) - before == config.max_examples:
        break
      origin = _decode(row.get('origin', f'{task.name}/{config.split}#{index}'))
      example = self._tokenise(row) if tokenised else self._text(row, origin)
      self._num_read += 1
      if example is not None and self._is_in_part(example):
        self._add(example | self._lists(row, origin), origin)
    self._drop_bad_images(before)
    return len(self.origins) - before

  def columns(self) -> dict[str, examples_lib.TokenColumn | np.ndarray]:
    """The rows read so far."""
    return {
      name: examples_lib.TokenColumn(rows)
      for name, rows in self._tokens.items()
    } | {
      name: np.asarray(values, np.float32)
      for name, values in self._numbers.items()
    }

  def image_column(self) -> images.ImageColumn | None:
    """The images of the rows read so far; None if no task has any."""
    rows = self.lists.get(row_checks.IMAGES)
    return None if rows is None else images.ImageColumn(rows)

  def report(self, sizes: list[int]):
    """Logs what was read, cut and skipped; an empty split is an error."""
    config, total = self._config, sum(sizes)
    label = f'{config.mixture_or_task_name}/{config.split}'
    if self.reasons:
      logging.warning(
        '%s: skipped %d unusable rows: %s',
        *(label, self.reasons.total(), self._reasons_text()),
      )
    if not total:
      raise errors.DataError(
        f'Split {config.split!r} of {config.mixture_or_task_name!r} has no'
        f' usable rows: {self._why_empty()}.'
      )
    logging.info('%s: %d examples (%s)', label, total, self._kind)
    for name, count in self.truncated.items():
      logging.info(
        '%s: %s cut in %d of %d examples (%.1f%%)',
        *(label, name, count, total, 100 * count / total),
      )

  def _why_empty(self) -> str:
    """Says why no row was read."""
    if self.reasons:
      return f'{self.reasons.total()} were skipped: {self._reasons_text()}'
    if self._config.part is not None and self._num_read:
      return (
        f'none of its {self._num_read} prompts belongs to the part'
        f' {self._config.part}'
      )
    if self._config.use_cached:
      return 'its cache holds none'
    reasons = [
      task.source.why_empty(self._config.split)
      for task in self._tasks
      if isinstance(task.source, sources.TextSource)
    ]
    return '; '.join(dict.fromkeys(reasons)) or 'its source has none'

  def _reasons_text(self) -> str:
    return '; '.join(
      f'{count} x {reason} (first at {self._first_bad[reason]})'
      for reason, count in self.reasons.most_common(_REASONS_SHOWN)
    )

  def _text(self, row: Mapping[str, Any], origin: str) -> dict | None:
    """Tokens of a text row, None if it is unusable and to be skipped."""
    text = {name: _decode(row[name]) for name in self._tokens}
    values = {name: row.get(name, 0.0) for name in self._numbers}
    problem = _decode(row.get('problem', b''))
    problem = problem or row_checks.find_problem(self._kind, text | values)
    if problem:
      self._skip_or_stop(origin, problem)
      return None
    tokens = {
      name: feature_converters.tokenize_prompt(self._vocabulary, value)
      if name == 'inputs'
      else feature_converters.tokenize_response(self._vocabulary, value)
      for name, value in text.items()
    }
    return tokens | values

  def _tokenise(self, row: Mapping[str, Any]) -> dict:
    """Normalises a row that SeqIO tokenised: each feature ends with EOS."""
    eos = np.int32(feature_converters.EOS_ID)
    return {
      name: np.append(examples_lib.strip_eos(row[name]), eos)
      for name in self._tokens
    } | {name: row.get(name, 0.0) for name in self._numbers}

  def _is_in_part(self, example: dict) -> bool:
    if self._config.part is None:
      return True
    index, count = self._config.part
    return zlib.crc32(example['inputs'].tobytes()) % count == index

  def _add(self, example: dict, origin: str):
    cut = self._converter.truncate(example)
    prompt, limit = len(example['inputs']), len(cut['inputs'])
    if self._config.refuse_long_prompts and prompt > limit:
      raise errors.DataError(
        f'{self._config.mixture_or_task_name}, {origin}: the prompt has'
        f" {prompt} tokens, and TASK_FEATURE_LENGTHS['inputs'] is {limit}."
        ' Raise it, or set REFUSE_LONG_PROMPTS to False to have prompts cut.'
      )
    for name, rows in self._tokens.items():
      rows.append(cut[name])
      if len(cut[name]) < len(example[name]):
        self.truncated[name] += 1
    for name, values in (self._numbers | self.lists).items():
      values.append(cut[name])
    self.origins.append(origin)

  def _lists(self, row: Mapping[str, Any], origin: str) -> dict[str, list]:
    """The list features of a row."""
    lists = {}
    if row_checks.REFERENCES in self.lists:
      lists[row_checks.REFERENCES] = list(
        map(_decode, row[row_checks.REFERENCES])
      )
    if row_checks.IMAGES in self.lists:
      values = row[row_checks.IMAGES]
      if len(values) > self._image_spec.count:
        raise errors.DataError(
          f'{origin}: the example has {len(values)} images, more than'
          f" {self._image_spec.count}. Set TASK_FEATURE_LENGTHS['images'] to"
          ' the most that an example has.'
        )
      lists[row_checks.IMAGES] = list(map(images.from_task, values))
    return lists

  def _drop_bad_images(self, start: int):
    """Stops at, or leaves out, rows from `start` whose images are unusable."""
    rows = self.lists.get(row_checks.IMAGES, [])[start:]
    problems = images.find_problems(
      list(dict.fromkeys(image for row in rows for image in row))
    )
    if not problems:
      return
    bad = set()
    for index, row in enumerate(rows, start):
      for image in row:
        if image in problems and index not in bad:
          self._skip_or_stop(self.origins[index], problems[image])
          bad.add(index)
    columns = [*(self._tokens | self._numbers | self.lists).values()]
    for column in (*columns, self.origins):
      column[:] = [x for i, x in enumerate(column) if i not in bad]

  def _skip_or_stop(self, origin: str, problem: str):
    if not self._config.skip_bad_rows:
      raise errors.DataError(
        f'{origin}: {problem}. Fix or remove the row, or leave out all such'
        ' rows with --gin.SKIP_BAD_ROWS=True (DatasetConfig.skip_bad_rows),'
        ' which counts and reports them.'
      )
    self.reasons[problem] += 1
    self._first_bad.setdefault(problem, origin)

  def _check_features(self, task: seqio.Task) -> bool:
    """Whether a task is tokenised already, with the run's vocabulary."""
    dtypes = {
      name: tf.as_dtype(task.output_features[name].dtype)
      for name in self._tokens
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
      if not self._vocabulary == feature.vocabulary:
        raise errors.DataError(
          f'Task {task.name!r} tokenises {name!r} with {feature.vocabulary},'
          f' but the run has {self._vocabulary}. Give both the same'
          ' vocabulary, or let the task yield text (tf.string), which serves'
          ' every vocabulary.'
        )
    return True


def _decode(value: Any) -> str:
  return value if isinstance(value, str) else value.decode('utf-8')
