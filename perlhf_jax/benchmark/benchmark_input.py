"""Measures how many images per second the input pipeline delivers."""

from collections.abc import Callable
import itertools
import statistics
import time
from typing import Annotated, Any

from absl import logging
from etils import epath
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.data import images
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import vocabularies
from perlhf_jax.stages import line_files

_LENGTHS = {'inputs': 128, 'targets': 64}


@checks.checked
def benchmark_input(
  *,
  task: str,
  image_size: Annotated[int, checks.AtLeastOne] = 64,
  split: str = 'train',
  batch_size: Annotated[int, checks.AtLeastOne] = 64,
  num_batches: Annotated[int, checks.AtLeastOne] = 100,
  num_images: Annotated[int, checks.AtLeastOne] = 1,
  repeats: Annotated[int, checks.AtLeastOne] = 5,
  module: str | None = None,
  output: str | None = None,
) -> dict[str, Any]:
  """Times training batches of a task with images, and prints a line.

  The batches are those of `train_sft` and `train_reward`, text included. The
  pipeline is compared, in turns, with a loop that decodes the same images one
  by one with the same TensorFlow operations.

  Args:
    task: a registered task with images.
    image_size: image height and width in pixels.
    split: the split to read.
    batch_size: examples per batch.
    num_batches: batches per pass.
    num_images: maximum number of images per example.
    repeats: timed passes of each, after one that is not timed.
    module: a module of yours that registers the task.
    output: a JSON file for the results.

  Returns:
    The content of the file: the setting, `images_per_second` and
    `one_by_one_images_per_second` (medians), their `ratio`, and the seconds of
    every pass.

  Raises:
    UserError: an input cannot be used; raised before anything is timed.
  """
  if output is not None:
    line_files.check_output(output)
  dataset = input_pipeline.DatasetConfig(
    mixture_or_task_name=task,
    task_feature_lengths={**_LENGTHS, 'images': num_images},
    split=split,
    batch_size=batch_size,
    module=module,
    skip_bad_rows=True,
  )
  examples = input_pipeline.load_examples(
    dataset, vocabularies.byte_vocabulary(), image_size
  )
  if examples.images is None:
    raise errors.ConfigError(
      f'Task {task!r} has no images; `perlhf tasks` lists the tasks with '
      'images.'
    )
  passes = {
    'pipeline': lambda: _through_pipeline(examples, num_batches),
    'one_by_one': lambda: _one_by_one(examples, num_batches),
  }
  rates = {name: [] for name in passes}
  for repeat in range(repeats + 1):
    for name, run in passes.items():
      rate = _rate(run)
      if repeat:
        rates[name].append(rate)
    logging.info('Pass %d of %d is done.', repeat, repeats)
  pipeline, one_by_one = (
    statistics.median(rates[name]) for name in ('pipeline', 'one_by_one')
  )
  result = {
    'task': task,
    'split': split,
    'examples': len(examples),
    'distinct_images': len(examples.images.images),
    'image_size': image_size,
    'batch_size': batch_size,
    'num_batches': num_batches,
    'images_per_second': pipeline,
    'one_by_one_images_per_second': one_by_one,
    'ratio': pipeline / one_by_one,
    'all_images_per_second': rates,
  }
  print(
    f'{task}/{split} at {image_size}x{image_size}, batches of {batch_size}: '
    f'{pipeline:,.0f} images/s decoded and batched; one by one '
    f'{one_by_one:,.0f} images/s ({result["ratio"]:.1f} times).'
  )
  if output is not None:
    epath.Path(output).write_text(strict_json.dumps(result, indent=2) + '\n')
  return result


def _rate(run: Callable[[], int]) -> float:
  """Returns the images per second of a pass."""
  start = time.perf_counter()
  count = run()
  return count / (time.perf_counter() - start)


def _through_pipeline(examples, num_batches: int) -> int:
  """Makes batches as training does; returns the number of images."""
  batches = input_pipeline.train_iterator(examples)
  return sum(
    int(batch['image_mask'].sum())
    for batch in itertools.islice(batches, num_batches)
  )


def _one_by_one(examples, num_batches: int) -> int:
  """Makes the same batches in a loop over images."""
  count, size = 0, examples.image_spec.size
  for step in range(num_batches):
    rows = examples.train_rows(step)
    examples.text_batch(rows)
    decoded = [
      images.decode(image, size)
      for row in rows
      for image in examples.images_of(int(row))
    ]
    count += len(np.stack(decoded))
  return count
