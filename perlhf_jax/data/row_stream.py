"""Streams the rows of a task as Python values.

Rows of our own sources are read directly. All others go through SeqIO and
TensorFlow, which is slower.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import seqio
import tensorflow as tf

from perlhf_jax.data import cached_tasks
from perlhf_jax.data import dataset_config
from perlhf_jax.data import row_checks
from perlhf_jax.data import sources


def is_plain(task: seqio.Task, use_cached: bool) -> bool:
  """Whether a task yields the rows of our source unchanged."""
  return (
    not use_cached
    and isinstance(task.source, sources.TextSource)
    and all(
      isinstance(each, seqio.CacheDatasetPlaceholder)
      for each in task.preprocessors
    )
    and all(
      tf.as_dtype(task.output_features[name].dtype) == tf.string
      for name in row_checks.TEXT_FEATURES[task.source.kind]
    )
  )


def read(
  task: seqio.Task, config: dataset_config.DatasetConfig, kind: str
) -> Iterator[Mapping[str, Any]]:
  """Yields features, `origin` and `problem` of the rows of a split, in order.

  Args:
    task: the task to read.
    config: names the split, and says whether to use SeqIO's cache.
    kind: sft, pairwise, pointwise or prompts.

  Returns:
    Rows. Text is `str`, and so is `problem`, which is empty for a usable row.
    The text features of a tokenised task are tokens.

  Raises:
    UserError: the source or the cache cannot be read.
  """
  if is_plain(task, config.use_cached):
    yield from task.source.rows(config.split)
    return
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
  text = row_checks.TEXT_FEATURES[kind]
  for index, row in enumerate(rows):
    row = dict(row)
    origin = row.get('origin', f'{task.name}/{config.split}#{index}')
    row['origin'] = _decoded(origin)
    row['problem'] = _decoded(row.get('problem', b''))
    for name in text:
      if isinstance(row[name], bytes | str):
        row[name] = _decoded(row[name])
    if isinstance(row[next(iter(text))], str) and not row['problem']:
      row['problem'] = row_checks.find_problem(kind, row) or ''
    if row_checks.REFERENCES in row:
      row[row_checks.REFERENCES] = [
        _decoded(each) for each in row[row_checks.REFERENCES]
      ]
    yield row


def _decoded(value: Any) -> str:
  return value if isinstance(value, str) else value.decode('utf-8')
