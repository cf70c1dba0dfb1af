"""From a task's name to batches.

`load_examples` reads a split once, checks and tokenises it; `train_iterator`
and `eval_batches` walk over what it returns.
"""

from collections import Counter
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent import futures
import dataclasses
import itertools
import math
from typing import Any
import zlib

from absl import logging
import numpy as np
import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import cached_tasks
from perlhf_jax.data import example_order
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import row_checks
from perlhf_jax.data import task_modules

# What `load_examples` returns.
Examples = examples_lib.Examples

_PREFETCH = 2
_REASONS_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """What to read; gin builds it, with the names of t5x's DatasetConfig.

  Attributes:
    mixture_or_task_name: a registered SeqIO task or mixture.
    task_feature_lengths: most tokens of a prompt (`inputs`) and of a
      response (`targets`; it holds for chosen and rejected ones too), EOS
      included. Prompt tasks need `inputs` only.
    split: name of the split.
    batch_size: examples in a global batch.
    shuffle: whether training goes through each epoch in a random order.
    seed: seed of that order.
    use_cached: read what `seqio_cache_tasks` wrote into PERLHF_CACHE_DIR.
    module: a module to import first, which registers tasks.
    max_examples: read only so many rows (of each task of a mixture).
    skip_bad_rows: leave out unusable rows, counted and reported, instead of
      stopping at the first.
    truncate_prompt: `keep_end` (the default, for dialogues) or `keep_start`.
    refuse_long_prompts: stop at a prompt that is too long and do not cut it.
    part: `(index, count)`: read only the examples whose prompt a hash puts
      into this part of `count`. The parts are disjoint and share no prompt,
      so reward models of different parts check each other. None reads all.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, int]
  split: str = 'train'
  batch_size: int = 32
  shuffle: bool = True
  seed: int = 0
  use_cached: bool = False
  module: str | None = None
  max_examples: int | None = None
  skip_bad_rows: bool = False
  truncate_prompt: str = 'keep_end'
  refuse_long_prompts: bool = False
  part: tuple[int, int] | None = None

  def __post_init__(self):
    if self.part is None:
      return
    index, count = self.part
    if not 0 <= index < count:
      raise errors.ConfigError(
        f'DatasetConfig.part is {self.part}: give (index, count), with the'
        ' index from 0 up to count - 1.'
      )


def load_examples(
  config: DatasetConfig, vocabulary: seqio.Vocabulary
) -> Examples:
  """Reads, checks, tokenises and truncates one split.

  A task yields text, which `vocabulary` tokenises, or int32 tokens, if its
  features have the same vocabulary. Its kind is recognised by its features.

  Raises:
    ConfigError: an unknown task, module, split or option, or features that
      are of no known kind.
    DataError: missing files, an unusable row (named by file and line), an
      empty split, or tokens of another vocabulary.
  """
  _keep_tensorflow_off_gpus()
  task_modules.import_tasks(config.module)
  provider = task_modules.find(config.mixture_or_task_name)
  kind = feature_converters.kind_of(list(provider.output_features))
  if kind is None:
    raise errors.ConfigError(
      f'Task {config.mixture_or_task_name!r} has the features'
      f' {", ".join(provider.output_features)}, which are of no known kind:'
      + ''.join(
        f' {name} has {", ".join(converter.TASK_FEATURES)};'
        for name, converter in feature_converters.CONVERTERS.items()
      ).rstrip(';')
      + '. Rename them with seqio.preprocessors.rekey.'
    )
  converter = _make_converter(config, kind)
  reader = _Reader(config, vocabulary, kind, converter)
  sizes, rates = [], []
  for task, rate in _tasks_with_rates(provider, config.split):
    size = reader.read(task)
    if size and rate:
      sizes.append(size)
      rates.append(rate)
  reader.report(sizes)
  return Examples(
    name=config.mixture_or_task_name,
    split=config.split,
    kind=kind,
    columns=reader.columns(),
    origins=reader.origins,
    converter=converter,
    order=example_order.ExampleOrder(sizes, rates, config.seed, config.shuffle),
    batch_size=config.batch_size,
    vocabulary=vocabulary,
    num_skipped=reader.reasons.total(),
    num_truncated=dict(reader.truncated),
  )


def train_iterator(
  examples: Examples,
  start_step: int = 0,
  part: np.ndarray | None = None,
) -> Iterator[feature_converters.Batch]:
  """Yields the batches of steps start_step, start_step + 1, ... for ever.

  A thread prepares the next batches meanwhile. The position to save in a
  checkpoint is the step.

  Args:
    examples: what to go through.
    start_step: from 0.
    part: int64 `[rows]`, which rows of a global batch to make; all if None.
  """
  executor = futures.ThreadPoolExecutor(1, thread_name_prefix='batches')
  try:
    queue = deque()
    for step in itertools.count(start_step):
      queue.append(executor.submit(examples.batch_at, step, part))
      if len(queue) > _PREFETCH:
        yield queue.popleft().result()
  finally:
    executor.shutdown(wait=False, cancel_futures=True)


def eval_batches(
  examples: Examples, batch_size: int | None = None
) -> Iterator[feature_converters.Batch]:
  """Yields every example once, in order, the same on every host.

  The last batch is padded with rows whose `example_mask` is False.

  Args:
    examples: what to go through.
    batch_size: rows of a global batch, that of training by default.
  """
  batch_size = batch_size or examples.batch_size
  for index in range(math.ceil(len(examples) / batch_size)):
    yield examples.eval_batch_at(index, batch_size)


class _Reader:
  """Collects the tokens of the tasks that are read into it."""

  def __init__(
    self,
    config: DatasetConfig,
    vocabulary: seqio.Vocabulary,
    kind: str,
    converter: feature_converters.Converter,
  ):
    self._config = config
    self._vocabulary = vocabulary
    self._kind = kind
    self._converter = converter
    text = row_checks.TEXT_FEATURES[kind]
    numbers = row_checks.NUMBER_FEATURES[kind]
    self._tokens = {name: [] for name in text}
    self._numbers = {name: [] for name in numbers}
    self.origins: list[str] = []
    self.reasons = Counter()
    self.truncated = Counter()
    self._first_bad: dict[str, str] = {}

  def read(self, task: seqio.Task) -> int:
    """Adds the rows of a task; returns how many."""
    config = self._config
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
    before = len(self.origins)
    for index, row in enumerate(rows):
      if len(self.origins) - before == config.max_examples:
        break
      origin = _decode(row.get('origin', f'{task.name}/{config.split}#{index}'))
      example = self._tokenise(row) if tokenised else self._text(row, origin)
      if example is not None and self._is_in_part(example):
        self._add(example, origin)
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
        f' usable rows ({self.reasons.total()} were skipped'
        f'{": " if self.reasons else ""}{self._reasons_text()}). Check the'
        ' files and max_examples, or name another split.'
      )
    logging.info('%s: %d examples (%s)', label, total, self._kind)
    for name, count in self.truncated.items():
      logging.info(
        '%s: %s cut in %d of %d examples (%.1f%%)',
        *(label, name, count, total, 100 * count / total),
      )

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
    for name, values in self._numbers.items():
      values.append(cut[name])
    self.origins.append(origin)

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


def _make_converter(
  config: DatasetConfig, kind: str
) -> feature_converters.Converter:
  lengths = config.task_feature_lengths
  needed = ['inputs'] if kind == 'prompts' else ['inputs', 'targets']
  for name in needed:
    # The least: one token and EOS.
    if not isinstance(lengths.get(name), int) or lengths[name] < 2:
      raise errors.ConfigError(
        f'TASK_FEATURE_LENGTHS is {dict(lengths)}, but task'
        f' {config.mixture_or_task_name!r} ({kind}) needs {name!r} of at least'
        f' 2 tokens. Give for example {dict.fromkeys(needed, 128)}.'
      )
  unknown = set(lengths) - {'inputs', 'targets'}
  if unknown:
    raise errors.ConfigError(
      f'TASK_FEATURE_LENGTHS has the unknown entry {min(unknown)!r}. It takes'
      ' inputs, and targets, which also limits chosen and rejected responses.'
    )
  if config.batch_size < 1:
    raise errors.ConfigError(
      f'BATCH_SIZE is {config.batch_size}; it must be at least 1.'
    )
  return feature_converters.CONVERTERS[kind](
    prompt_length=lengths['inputs'],
    response_length=lengths.get('targets', 0),
    truncate_prompt=config.truncate_prompt,
  )


def _tasks_with_rates(
  provider: seqio.Task | seqio.Mixture, split: str
) -> list[tuple[seqio.Task, float]]:
  """The tasks of a task or mixture that have a split, with their rates."""
  if split not in (provider.splits or ()):
    raise errors.ConfigError(
      f'Task {provider.name!r} has no split {split!r}; it has'
      f' {", ".join(sorted(provider.splits or ()))}.'
    )
  if isinstance(provider, seqio.Task):
    return [(provider, 1.0)]
  tasks = []
  for task in provider.tasks:
    if split in (task.splits or ()):
      try:
        rate = provider.get_rate(task)
      except (TypeError, ValueError, AssertionError) as error:
        raise errors.ConfigError(
          f'The rate of {task.name!r} in mixture {provider.name!r} cannot be'
          f' computed ({error}). Give it as a number.'
        ) from error
      tasks.append((task, rate))
  return tasks


def _decode(value: Any) -> str:
  return value if isinstance(value, str) else value.decode('utf-8')


def _keep_tensorflow_off_gpus():
  """TensorFlow only reads data here, and JAX needs the memory."""
  if not tf.config.get_visible_devices('GPU'):
    return
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:
    logging.warning(
      'TensorFlow already holds the GPU; JAX may run out of its memory.'
    )
