"""Reports the examples, truncated texts and bad rows of a split."""

from collections.abc import Sequence

from absl import logging
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.data import kinds
from perlhf_jax.data import sources
from perlhf_jax.data import task_rows

_REASONS_SHOWN = 5


def report(
  config: dataset_config.DatasetConfig,
  kind: kinds.Kind,
  tasks: Sequence[seqio.Task],
  rows: task_rows.TaskRows,
  sizes: Sequence[int],
) -> None:
  """Logs the numbers of examples read, truncated and skipped.

  Args:
    config: configuration of the data set.
    kind: kind of the tasks.
    tasks: tasks that were read.
    rows: rows of all these tasks.
    sizes: number of examples of each task that is sampled.

  Raises:
    DataError: the split is empty; the message says why.
  """
  total = sum(sizes)
  label = f'{config.mixture_or_task_name}/{config.split}'
  if rows.reasons:
    logging.warning(
      '%s: skipped %d unusable rows: %s',
      *(label, rows.reasons.total(), _reasons(rows)),
    )
  if not total:
    raise errors.DataError(
      f'Split {config.split!r} of {config.mixture_or_task_name!r} has no'
      f' usable rows: {_why_empty(config, tasks, rows)}.'
    )
  logging.info('%s: %d examples (%s)', label, total, kind.name)
  for name, count in rows.truncated.items():
    logging.info(
      '%s: %s cut in %d of %d examples (%.1f%%)',
      *(label, name, count, total, 100 * count / total),
    )


def _why_empty(
  config: dataset_config.DatasetConfig,
  tasks: Sequence[seqio.Task],
  rows: task_rows.TaskRows,
) -> str:
  if rows.reasons:
    return f'{rows.reasons.total()} were skipped: {_reasons(rows)}'
  if config.part is not None and rows.num_read:
    return (
      f'none of its {rows.num_read} prompts belongs to the part {config.part}'
    )
  if config.use_cached:
    return 'its cache holds none'
  reasons = [
    task.source.why_empty(config.split)
    for task in tasks
    if isinstance(task.source, sources.TextSource)
  ]
  return '; '.join(dict.fromkeys(reasons)) or 'its source has none'


def _reasons(rows: task_rows.TaskRows) -> str:
  return '; '.join(
    f'{count} x {reason} (first at {rows.first_bad[reason]})'
    for reason, count in rows.reasons.most_common(_REASONS_SHOWN)
  )
