"""The rows of a task, one after the other, as Python has them.

Rows of our own sources come as these make them. All others go through SeqIO
and TensorFlow, which takes longer.
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
  """Whether nothing stands between our source and what a task yields."""
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
    task: whose.
    config: which split, and whether from a cache of SeqIO's.
    kind: sft, pairwise, pointwise or prompts.

  Returns:
    Rows. Text is `str`, and so is `problem`, which is empty for a row that can
    be used; of a task that is tokenised already, text features are tokens.

  Raises:
    UserError: by the source, or by the cache.
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
