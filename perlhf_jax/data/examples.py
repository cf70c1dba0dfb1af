"""The tokenised examples of one split, addressed by step.

Preference data sets have fewer than a million rows of text, so each host
keeps all of them as compact token arrays. A batch is then a function of
(seed, step): the position of a run is one integer, and resuming is exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio

from perlhf_jax.data import example_order
from perlhf_jax.data import feature_converters
from perlhf_jax.data import length_buckets


class TokenColumn:
  """Token arrays of different lengths, end to end in one buffer.

  Attributes:
    values: all tokens, int32.
    ends: where each row ends, int64.
  """

  def __init__(self, rows: Sequence[np.ndarray]):
    self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    self.values = (
      np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32)
    )

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, index: int) -> np.ndarray:
    start = self.ends[index - 1] if index else 0
    return self.values[start : self.ends[index]]


class Examples:
  """Everything that training or evaluation reads of one split.

  Attributes:
    name: the task or mixture.
    split: its split.
    kind: sft, pairwise, pointwise or prompts.
    columns: truncated tokens (`TokenColumn`) or numbers of each task feature.
    origins: where each row came from, for messages and reports.
    converter: makes batches of them.
    order: the endless order of training.
    batch_size: rows of a global training batch.
    vocabulary: what the tokens mean.
    num_skipped: unusable rows that were left out.
    num_truncated: by feature, how many examples were cut.
  """

  def __init__(
    self,
    name: str,
    split: str,
    kind: str,
    columns: dict[str, TokenColumn | np.ndarray],
    origins: Sequence[str],
    converter: feature_converters.Converter,
    order: example_order.ExampleOrder,
    batch_size: int,
    vocabulary: seqio.Vocabulary,
    num_skipped: int = 0,
    num_truncated: dict[str, int] | None = None,
  ):
    self.name = name
    self.split = split
    self.kind = kind
    self.columns = columns
    self.origins = origins
    self.converter = converter
    self.order = order
    self.batch_size = batch_size
    self.vocabulary = vocabulary
    self.num_skipped = num_skipped
    self.num_truncated = num_truncated or {}

  def __len__(self) -> int:
    return len(self.columns['inputs'])

  def example(self, index: int) -> dict[str, Any]:
    """Task features of one row: tokens [length], or numbers."""
    return {name: column[index] for name, column in self.columns.items()}

  def texts(self, index: int) -> dict[str, Any]:
    """One row for people: decoded as the model sees it, after truncation."""
    return {
      name: self.vocabulary.decode(strip_eos(value).tolist())
      if isinstance(value, np.ndarray)
      else float(value)
      for name, value in self.example(index).items()
    }

  def prompts(self) -> 'Examples':
    """The same rows as prompts alone, whatever the task has beside them."""
    if self.kind == 'prompts':
      return self
    return Examples(
      name=self.name,
      split=self.split,
      kind='prompts',
      columns={'inputs': self.columns['inputs']},
      origins=self.origins,
      converter=feature_converters.PromptConverter(
        self.converter.prompt_length,
        truncate_prompt=self.converter.truncate_prompt,
      ),
      order=self.order,
      batch_size=self.batch_size,
      vocabulary=self.vocabulary,
      num_skipped=self.num_skipped,
      num_truncated=self.num_truncated,
    )

  def batch_at(
    self, step: int, part: np.ndarray | None = None
  ) -> feature_converters.Batch:
    """The global training batch of a step, or a part of it.

    Prompts alone are padded to a bucket that holds the longest of the global
    batch, so that all hosts have the same.

    Args:
      step: from 0. Step `s` reads positions s*batch_size ... of the endless
        stream; a data set smaller than a batch is simply repeated.
      part: int64 `[rows]`, which rows of the global batch to make; all of
        them if None.

    Returns:
      The batch of `converter`, its rows in the order of `part`.
    """
    rows = self.order.rows(step * self.batch_size, (step + 1) * self.batch_size)
    return self._batch(rows, part)

  def eval_batch_at(
    self, index: int, batch_size: int
  ) -> feature_converters.Batch:
    """An evaluation batch: rows in their order.

    Rows beyond the last example are padding, with `example_mask` False.
    """
    start = index * batch_size
    return self._batch(np.arange(start, start + batch_size), None)

  def _batch(self, rows, part):
    """Makes `rows[part]`; those beyond the last example are padding."""
    mine = rows if part is None else rows[part]
    examples = [self.example(int(row)) for row in mine if row < len(self)]
    batch = self.converter(examples, batch_size=len(mine))
    if self.kind != 'prompts':
      return batch
    prompts = self.columns['inputs']
    longest = max(len(prompts[int(r)]) for r in rows if r < len(self))
    return length_buckets.trim_prompts(batch, longest)


def strip_eos(tokens: np.ndarray) -> np.ndarray:
  """Tokens without the EOS at their end, if there is one."""
  ends = len(tokens) and tokens[-1] == feature_converters.EOS_ID
  return tokens[:-1] if ends else tokens
