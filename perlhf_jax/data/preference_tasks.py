"""Registers SeqIO tasks of preference data, with one call per task.

A user's module, say `my_tasks.py`:

  from perlhf_jax.data import preference_tasks

  def parse(record):
    return {
      'inputs': record['question'],
      'chosen': record['better'],
      'rejected': record['worse'],
    }

  preference_tasks.add_preference_task(
    'my_rm', 'pairwise', parse, files='my_pairs.jsonl',
    splits={'train': 0.9, 'validation': 0.1},
    source='our annotators, 2026', licence='CC BY 4.0')

is used with `--gin.MIXTURE_OR_TASK_MODULE="'my_tasks'"` and
`--gin.MIXTURE_OR_TASK_NAME="'my_rm'"`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import seqio
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import json_rows
from perlhf_jax.data import kinds
from perlhf_jax.data import own_functions
from perlhf_jax.data import sources


def add_preference_task(
  name: str,
  kind: str,
  parse: sources.Parse,
  files: str | Mapping[str, str] | Sequence[Sequence[sources.FileGroup]],
  splits: Mapping[str, float] | None = None,
  base_dir: str | None = None,
  info: sources.DatasetInfo | None = None,
  *,
  read: sources.Read = json_rows.read,
  images: bool = False,
  references: bool = False,
  source: str | None = None,
  licence: str | None = None,
) -> seqio.Task:
  """Registers a task that reads JSON files.

  Args:
    name: name of the task, for MIXTURE_OR_TASK_NAME.
    kind: kind of the task, which decides the features that `parse` returns:
      `sft`: inputs, targets;
      `pairwise`: inputs, chosen, rejected and perhaps margin;
      `pointwise`: inputs, targets, label (0 or 1);
      `prompts`: inputs.
    parse: converts one record (a dict) to these features, as plain text, or to
      a list of such features if the record has several examples. It returns
      None for a record that does not belong to the task; a KeyError,
      ValueError, TypeError, AttributeError or IndexError marks the record as
      unusable.
    files: a glob pattern below the data directory, whose rows are split by a
      hash of the prompt (or of the feature `split_key`) in the proportions of
      `splits`; or a pattern for each split; or alternative layouts, see
      `sources.FileSource`.
    splits: share of each split; 90% train and 10% validation by default.
    base_dir: the data directory, local or `gs://`; PERLHF_DATA_DIR by
      default.
    info: description, source and licence, which error messages and
      `perlhf tasks` show.
    read: reads the records of a file; JSON lines or a JSON array by default.
    images: whether `parse` also returns `images`, a list of encoded PNG or JPEG
      images (bytes) or of paths of such files (str).
    references: for prompts, whether `parse` also returns `references`, the
      answers that a judge accepts, as a list of text.
    source: origin of the data, in place of `info`.
    licence: licence of the data, in place of `info`.

  Returns:
    The registered task.

  Raises:
    ConfigError: the name is taken, the kind is unknown, `parse` does not take
      exactly a record, the shares of the splits do not add up to 1, or `splits`
      is given although `files` determines the splits.
  """
  kinds.named(kind, f'Task {name!r}')
  own_functions.check_takes_one(name, 'parse', parse)
  layouts = _layouts(name, files, splits)
  info = info or sources.DatasetInfo()
  if source is not None:
    info = dataclasses.replace(info, homepage=source)
  if licence is not None:
    info = dataclasses.replace(info, licence=licence)
  return add_text_task(
    name,
    sources.FileSource(
      kind,
      layouts,
      parse,
      info,
      base_dir,
      read=read,
      images=images,
      references=references,
    ),
  )


def _layouts(
  name: str, files: Any, splits: Any
) -> Sequence[Sequence[sources.FileGroup]]:
  """Returns the layouts that `files` and `splits` of a task describe."""
  if isinstance(files, str):
    fractions = {'train': 0.9, 'validation': 0.1} if splits is None else splits
    _check_shares(name, fractions)
    return [[sources.FileGroup((files,), fractions)]]
  if splits is not None:
    raise errors.ConfigError(
      f'Task {name!r}: files already names the splits; leave out splits.'
    )
  if isinstance(files, Mapping):
    is_known = all(isinstance(each, str) for each in files.values())
  else:
    is_known = isinstance(files, Sequence) and all(
      isinstance(layout, Sequence)
      and all(isinstance(group, sources.FileGroup) for group in layout)
      for layout in files
    )
  if not files or not is_known:
    raise errors.ConfigError(
      f"Task {name!r}: files is {files!r}; give one pattern ('my.jsonl'), a"
      " pattern for each split ({'train': 'a.jsonl', 'validation': 'b.jsonl'}),"
      ' or layouts of sources.FileGroup. A pattern may hold *.'
    )
  if not isinstance(files, Mapping):
    return files
  groups = files.items()
  return [[sources.FileGroup((f,), {split: 1.0}) for split, f in groups]]


def _check_shares(name: str, splits: Any):
  """Raises a ConfigError unless the shares of the splits add up to 1."""
  shares = list(splits.values()) if isinstance(splits, Mapping) else [None]
  are_shares = all(
    isinstance(share, int | float) and 0 < share <= 1 for share in shares
  )
  if not are_shares or not math.isclose(sum(shares), 1, abs_tol=1e-6):
    raise errors.ConfigError(
      f'Task {name!r}: splits is {splits!r}; give the share of each split; the'
      " shares must add up to 1, such as {'train': 0.9, 'validation': 0.1}."
    )


def add_text_task(name: str, source: sources.TextSource) -> seqio.Task:
  """Registers a task whose source already yields text features.

  Raises:
    ConfigError: the name is taken or invalid.
  """
  if name in seqio.TaskRegistry.names():
    raise errors.ConfigError(
      f'There is already a task {name!r}; give yours another name.'
    )
  try:
    return seqio.TaskRegistry.add(
      name,
      source,
      output_features=text_features(source.kind.name, source.lists),
      # `seqio_cache_tasks` stores text, so that one cache serves every
      # vocabulary.
      preprocessors=[seqio.CacheDatasetPlaceholder()],
    )
  except ValueError as error:  # Such as a name with a space.
    raise errors.ConfigError(
      f'Task {name!r} cannot be registered: {error}.'
    ) from error


def text_features(
  kind: str, lists: Sequence[str] = ()
) -> dict[str, seqio.Feature]:
  """Returns the SeqIO output features of a text task, for hand-built tasks.

  Text has dtype string and rank 0; the run's vocabulary tokenises it later.
  Images are continuous features of dtype string and rank 1, encoded or paths of
  files; the run's model decides the resolution at which they are decoded.

  Args:
    kind: sft, pairwise, pointwise or prompts.
    lists: further list features: `images`, `references`.

  Raises:
    ConfigError: the kind is unknown.
  """
  known = kinds.named(kind, 'A task')
  vocabulary = seqio.PassThroughVocabulary(size=0)
  features = {}
  for feature in known.texts:
    features[feature] = seqio.Feature(
      vocabulary, add_eos=False, dtype=tf.string, rank=0
    )
  for feature, number in known.numbers.items():
    features[feature] = seqio.Feature(
      vocabulary,
      add_eos=False,
      required=number.default is None,
      dtype=tf.float32,
      rank=0,
    )
  for feature in lists:
    features[feature] = seqio.ContinuousFeature(dtype=tf.string, rank=1)
  return features
