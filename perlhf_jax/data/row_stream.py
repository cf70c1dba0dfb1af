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
from perlhf_jax.data import kinds
from perlhf_jax.data import row_checks
from perlhf_jax.data import sources


def is_plain(task: seqio.Task) -> bool:
  """Whether a task yields the rows of our source, or of its cache, unchanged.

  The source has checked these rows.
  """
  return (
    isinstance(task.source, sources.TextSource)
    and all(
      isinstance(each, seqio.CacheDatasetPlaceholder)
      for each in task.preprocessors
    )
    and all(
      tf.as_dtype(task.output_features[name].dtype) == tf.string
      for name in task.source.kind.texts
    )
  )


def read(
  task: seqio.Task, config: dataset_config.DatasetConfig, kind: kinds.Kind
) -> Iterator[Mapping[str, Any]]:
  """Yields features, `origin` and `problem` of the rows of a split, in order.

  Args:
    task: the task to read.
    config: names the split, and says whether to use SeqIO's cache.
    kind: kind of the task.

  Returns:
    Rows. Text is `str`, and so is `problem`, which is empty for a usable row.
    The text features of a tokenised task are tokens.

  Raises:
    UserError: the source or the cache cannot be read.
  """
  is_ours = is_plain(task)
  if is_ours and not config.use_cached:
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
  for index, row in enumerate(rows):
    row = dict(row)
    origin = row.get('origin', f'{task.name}/{config.split}#{index}')
    row['origin'] = _decoded(origin)
    is_checked = is_ours and 'problem' in row
    row['problem'] = _decoded(row.get('problem', b''))
    for name in kind.texts:
      if isinstance(row[name], bytes | str):
        row[name] = _decoded(row[name])
    is_text = isinstance(row[kinds.INPUTS], str)
    if is_text and not is_checked and not row['problem']:
      row['problem'] = row_checks.find_problem(kind, row) or ''
    if kinds.REFERENCES in row:
      row[kinds.REFERENCES] = [_decoded(each) for each in row[kinds.REFERENCES]]
    yield row


def _decoded(value: Any) -> str:
  return value if isinstance(value, str) else value.decode('utf-8')
