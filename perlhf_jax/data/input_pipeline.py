"""The input pipeline, from the name of a task to batches.

`load_examples` reads, checks and tokenises a split once; `train_iterator` and
`eval_batches` make batches of its examples.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import itertools
import math
from typing import Any

from absl import logging
from etils import epy
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import user_code
from perlhf_jax.data import dataset_config
from perlhf_jax.data import example_order
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import kinds
from perlhf_jax.data import task_rows

# Imported when the first task is read: the imports take seconds, and machines
# that read no task do not need these packages.
with epy.lazy_imports():
  import seqio
  import tensorflow as tf

  from perlhf_jax.data import read_report
  from perlhf_jax.data import task_modules
  from perlhf_jax.data import task_reader
  from perlhf_jax.data import token_cache

# Argument and result of `load_examples`.
DatasetConfig = dataset_config.DatasetConfig
Examples = examples_lib.Examples

_PREFETCH = 2


def load_examples(
  config: DatasetConfig,
  vocabulary: Any,
  image_size: int | None = None,
) -> Examples:
  """Reads, checks, tokenises and truncates one split.

  A task yields text, which `vocabulary` tokenises, or int32 tokens, if its
  features have the same vocabulary. Its features determine its kind. All images
  are decoded once, to find unusable ones.

  Args:
    config: data set to read.
    vocabulary: the run's tokenizer.
    image_size: pixels per side of the model's images; None for a model that
      reads only text.

  Raises:
    ConfigError: an unknown task, module, split or option, features of no known
      kind, or images for a model that reads only text.
    DataError: missing files, an unusable row or image (named by file and
      line), an empty split, or tokens of another vocabulary.
  """
  _keep_tensorflow_off_gpus()
  task_modules.import_tasks(config.module)
  provider = task_modules.find(config.mixture_or_task_name)
  kind = kinds.of_features(provider.output_features)
  if kind is None:
    raise errors.ConfigError(
      f'Task {config.mixture_or_task_name!r} has the features'
      f' {", ".join(provider.output_features)}, which match no kind of task:'
      + ''.join(
        f' {known.name} has {", ".join(known.required)};'
        for known in kinds.KINDS.values()
      ).rstrip(';')
      + '. Rename them with seqio.preprocessors.rekey.'
    )
  converter = _make_converter(config, kind)
  image_spec = _image_spec(config, provider, image_size)
  reader = task_reader.TaskReader(config, vocabulary, converter, image_spec)
  tasks = _tasks_with_rates(provider, config.split)
  parts = [token_cache.read(reader, task) for task, _ in tasks]
  sizes, rates = [], []
  for part, (_, rate) in zip(parts, tasks, strict=True):
    if len(part) and rate:
      sizes.append(len(part))
      rates.append(rate)
  rows = task_rows.joined(parts)
  if len(rows) and not sizes:
    raise errors.ConfigError(
      f'Mixture {config.mixture_or_task_name!r} draws nothing: each of its'
      ' tasks has the rate 0.'
    )
  read_report.report(config, kind, [task for task, _ in tasks], rows, sizes)
  pictures = rows.lists.get(kinds.IMAGES)
  return Examples(
    name=config.mixture_or_task_name,
    split=config.split,
    columns={**rows.tokens, **rows.numbers},
    origins=rows.origins,
    converter=converter,
    order=example_order.ExampleOrder(sizes, rates, config.seed, config.shuffle),
    batch_size=config.batch_size,
    vocabulary=vocabulary,
    num_skipped=rows.reasons.total(),
    num_truncated=dict(rows.truncated),
    images=None if pictures is None else images.ImageColumn(pictures),
    image_spec=image_spec,
    references=rows.lists.get(kinds.REFERENCES),
    length_buckets=config.length_buckets,
    length_window=config.length_window,
  )


def train_iterator(
  examples: Examples,
  start_step: int = 0,
  part: np.ndarray | None = None,
) -> Iterator[feature_converters.Batch]:
  """Yields the batches of steps start_step, start_step + 1, ... without end.

  A thread prepares the next batches meanwhile. The position to save in a
  checkpoint is the step.

  Args:
    examples: examples to iterate over.
    start_step: first step, from 0.
    part: int64 `[rows]`, rows of a global batch to make; None for all.
  """
  part = np.arange(examples.batch_size) if part is None else part

  def rows():
    return map(examples.train_rows, itertools.count(start_step))

  text = _ahead(lambda rows: examples.text_batch(rows, part), rows())
  yield from _with_images(examples, text, (each[part] for each in rows()))


def _ahead(make: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
  """Yields `make(input)` for each input; a thread prepares the next ones."""
  executor = futures.ThreadPoolExecutor(1, thread_name_prefix='batches')
  try:
    queue = deque()
    for each in inputs:
      queue.append(executor.submit(make, each))
      if len(queue) > _PREFETCH:
        yield queue.popleft().result()
    while queue:
      yield queue.popleft().result()
  finally:
    executor.shutdown(wait=False, cancel_futures=True)


def _with_images(
  examples: Examples,
  batches: Iterable[feature_converters.Batch],
  rows: Iterable[np.ndarray],
) -> Iterator[feature_converters.Batch]:
  """Yields batches with the images of their rows, if the task has images."""
  count = len(examples)
  image_rows = (
    [examples.images_of(int(row)) if row < count else () for row in each]
    for each in rows
  )
  return images.attach(batches, image_rows, examples.image_spec)


def eval_batches(
  examples: Examples, batch_size: int | None = None
) -> Iterator[feature_converters.Batch]:
  """Yields every example once, the same on every host.

  Examples of similar lengths are grouped, unless `length_buckets` is 0 or 1.
  `EXAMPLE_ROWS` of each batch has the positions of its examples in the data
  set, so that results can be sorted again. The last batch is padded with rows
  whose `example_mask` is False.

  Args:
    examples: examples to iterate over.
    batch_size: rows of a global batch; by default the training batch size.
  """
  rows = examples.eval_rows(batch_size or examples.batch_size)
  batches = _with_images(examples, map(examples.text_batch, rows), rows)
  for batch, each in zip(batches, rows, strict=True):
    yield {**batch, feature_converters.EXAMPLE_ROWS: each.astype(np.int32)}


def _make_converter(
  config: DatasetConfig, kind: kinds.Kind
) -> feature_converters.Converter:
  lengths = config.task_feature_lengths
  for name in kind.limited:
    # The minimum is one token and EOS.
    if not isinstance(lengths.get(name), int) or lengths[name] < 2:
      raise errors.ConfigError(
        f'TASK_FEATURE_LENGTHS is {dict(lengths)}, but task'
        f' {config.mixture_or_task_name!r} ({kind.name}) needs {name!r} of at'
        f' least 2 tokens. Give for example {dict.fromkeys(kind.limited, 128)}.'
      )
  unknown = set(lengths) - {'inputs', 'targets', kinds.IMAGES}
  if unknown:
    raise errors.ConfigError(
      f'TASK_FEATURE_LENGTHS has the unknown entry {min(unknown)!r}. It takes'
      ' inputs, targets, which also limits chosen and rejected responses, and'
      ' images.'
    )
  return feature_converters.Converter(
    kind,
    prompt_length=lengths['inputs'],
    response_length=lengths.get('targets', 0),
    truncate_prompt=config.truncate_prompt,
  )


def _image_spec(
  config: DatasetConfig,
  provider: 'seqio.Task | seqio.Mixture',
  image_size: int | None,
) -> images.ImageSpec | None:
  """Returns how the task's images are decoded; None if it has no images."""
  count = config.task_feature_lengths.get(kinds.IMAGES)
  if kinds.IMAGES not in provider.output_features:
    if count is not None and image_size is None:
      raise errors.ConfigError(
        "TASK_FEATURE_LENGTHS has 'images', but neither the task"
        f' {config.mixture_or_task_name!r} nor the model has any. Leave it out.'
      )
    return None
  if image_size is None:
    raise errors.ConfigError(
      f'Task {config.mixture_or_task_name!r} has images, but the model reads'
      ' only text. Use a PaLI, such as gin/models/pali_tiny.gin, or a'
      ' checkpoint of a PaLI.'
    )
  count = 1 if count is None else count
  if not isinstance(count, int) or count < 1:
    raise errors.ConfigError(
      f"TASK_FEATURE_LENGTHS['images'] is {count!r}; it must be a whole number"
      ' of at least 1.'
    )
  return images.ImageSpec(image_size, count)


def _tasks_with_rates(
  provider: 'seqio.Task | seqio.Mixture', split: str
) -> 'list[tuple[seqio.Task, float]]':
  """Returns the tasks of a task or mixture with a split, and their rates."""
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
      except Exception as error:  # A rate may be a user's function.
        raise errors.ConfigError(
          f'The rate of {task.name!r} in mixture {provider.name!r} cannot be'
          f' computed: {user_code.describe(error)}. Give it as a number.'
        ) from error
      if not 0 <= rate < math.inf:
        raise errors.ConfigError(
          f'The rate of {task.name!r} in mixture {provider.name!r} is {rate};'
          ' give a number of at least 0.'
        )
      tasks.append((task, rate))
  return tasks


def _keep_tensorflow_off_gpus():
  """Hides the GPUs from TensorFlow, which only reads data; JAX needs them."""
  if not tf.config.get_visible_devices('GPU'):
    return
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:
    logging.warning(
      'TensorFlow already holds the GPU; JAX may run out of its memory.'
    )
