"""The tokenised examples of one split, addressed by step.

Preference data sets have fewer than a million rows of text. So each host keeps
all rows as compact token arrays, with images encoded or as paths. A batch is
then a function of (seed, step): the position of a run is one integer, and
resuming is exact.
"""

from collections.abc import Mapping, Sequence
import copy
from typing import Any

import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import batch_order
from perlhf_jax.data import example_order
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images as images_lib
from perlhf_jax.data import kinds
from perlhf_jax.data import length_buckets as length_buckets_lib
from perlhf_jax.data import padding_lengths
from perlhf_jax.data import token_columns
from perlhf_jax.data import token_ids

# Number of batches whose share of padding is reported at the start.
_STEPS_DESCRIBED = 1000


class Examples:
  """Everything that training or evaluation reads from one split.

  Attributes:
    name: name of the task or mixture.
    split: name of the split.
    columns: truncated tokens (`TokenColumn`) or numbers of each feature.
    origins: origin of each row, for messages and reports.
    converter: converter that makes batches of the examples.
    order: endless order of training.
    batch_size: rows of a global training batch.
    vocabulary: vocabulary of the tokens.
    num_skipped: number of unusable rows that were left out.
    num_truncated: number of truncated examples by feature.
    images: images of each row; None for a task without images.
    image_spec: how images are decoded.
    references: for prompts, the answers that a judge accepts; None without.
    length_window: number of batches within which examples are grouped by
      length.
    padding: shapes of batches; None for one shape and examples in the order of
      the stream.
  """

  def __init__(
    self,
    name: str,
    split: str,
    columns: dict[str, token_columns.TokenColumn | np.ndarray],
    origins: Sequence[str],
    converter: feature_converters.Converter,
    order: example_order.ExampleOrder,
    batch_size: int,
    vocabulary: Any,
    num_skipped: int = 0,
    num_truncated: dict[str, int] | None = None,
    images: images_lib.ImageColumn | None = None,
    image_spec: images_lib.ImageSpec | None = None,
    references: Sequence[Sequence[str]] | None = None,
    length_buckets: int = 0,
    length_window: int = 1,
  ):
    self.name = name
    self.split = split
    self.columns = columns
    self.origins = origins
    self.converter = converter
    self.order = order
    self.batch_size = batch_size
    self.vocabulary = vocabulary
    self.num_skipped = num_skipped
    self.num_truncated = num_truncated or {}
    self.images = images
    self.image_spec = image_spec
    self.references = references
    self.length_window = length_window
    self._length_buckets = length_buckets
    self._arrange()

  def _arrange(self):
    """Chooses the shapes of batches, and groups examples by shape."""
    responses = [self.columns[name].lengths for name in self.kind.responses]
    prompts = self.columns[kinds.INPUTS].lengths
    longest = np.max([np.zeros_like(prompts), *responses], axis=0)
    self._lengths = np.stack([prompts, longest], axis=1)
    self._num_tokens = sum(responses, prompts)
    self.padding = self._batches = None
    if self._length_buckets <= 1:
      return
    self.padding = padding_lengths.choose(
      self._lengths, self._limits, len(responses), self._length_buckets
    )
    self._classes = self.padding.classes(self._lengths)
    if self.order.shuffle:
      self._batches = batch_order.BatchOrder(
        self.order, self._classes, self.batch_size, self.length_window
      )

  @property
  def kind(self) -> kinds.Kind:
    """The kind of the examples."""
    return self.converter.kind

  @property
  def _limits(self) -> tuple[int, int]:
    return self.converter.prompt_length, self.converter.response_length

  def __len__(self) -> int:
    return len(self.columns[kinds.INPUTS])

  def check_ids(self, num_ids: int) -> None:
    """Makes sure that a model's embedding has all token ids.

    Args:
      num_ids: rows of the model's embedding.

    Raises:
      DataError: an id is not below `num_ids`; names the row and the id.
    """
    for name, column in self.columns.items():
      if not isinstance(column, token_columns.TokenColumn):
        continue
      place = column.find_beyond(num_ids)
      if place is not None:
        bad = token_ids.describe(
          int(column.values[place]), name, num_ids, 'the model'
        )
        row = int(np.searchsorted(column.ends, place, side='right'))
        raise errors.DataError(
          f'{self.origins[row]}: {bad}. The vocabulary belongs to another '
          "model: set VOCABULARY to the model's own."
        )

  def example(self, index: int) -> dict[str, Any]:
    """Task features of one row: tokens [length], or numbers."""
    return {name: column[index] for name, column in self.columns.items()}

  def texts(self, index: int) -> dict[str, Any]:
    """One row as readable text, after truncation, as the model sees it."""
    return {
      name: self.vocabulary.decode(feature_converters.strip_eos(value).tolist())
      if isinstance(value, np.ndarray)
      else float(value)
      for name, value in self.example(index).items()
    }

  def feature_lengths(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """TASK_FEATURE_LENGTHS, with the number of images filled in."""
    if self.image_spec is None:
      return dict(lengths)
    return {**lengths, kinds.IMAGES: self.image_spec.count}

  def images_of(self, index: int) -> tuple[images_lib.Image, ...]:
    """The images of one row, encoded or as paths."""
    return () if self.images is None else self.images[index]

  def references_of(self, index: int) -> list[str] | None:
    """Right answers of a row: its references, or the target of sft.

    None if unknown: the targets of judged responses may be bad answers.
    """
    if self.references is not None:
      return list(self.references[index])
    if self.kind.shows_answers:
      return [self.texts(index)['targets']]
    return None

  def prompts(self) -> 'Examples':
    """Returns the same rows with their prompts only."""
    if self.kind is kinds.PROMPTS:
      return self
    prompts = copy.copy(self)
    prompts.columns = {kinds.INPUTS: self.columns[kinds.INPUTS]}
    prompts.converter = self.converter.of_prompts()
    prompts._arrange()
    return prompts

  def at_one_shape(self) -> 'Examples':
    """Returns the same rows in stream order, padded to the maximum lengths."""
    examples = copy.copy(self)
    examples._length_buckets = 0
    examples._arrange()
    return examples

  def train_rows(self, step: int) -> np.ndarray:
    """Rows of the global training batch of a step, int64 `[batch_size]`.

    Step `s`, from 0, reads positions s*batch_size ... of the endless stream; a
    data set smaller than a batch is repeated. With several shapes, rows are
    grouped by length within a window; see `batch_order`.
    """
    if self._batches is not None:
      return self._batches.rows(step)
    start = step * self.batch_size
    return self.order.rows(start, start + self.batch_size)

  def eval_rows(self, batch_size: int) -> list[np.ndarray]:
    """Rows of batches that hold every example once, int64 `[batch_size]` each.

    Rows of the largest shape come first, so that a shape that does not fit into
    memory fails early. The last batch is filled up with row numbers beyond the
    last example.
    """
    count = len(self)
    rows = np.arange(-(-count // batch_size) * batch_size)
    if self.padding is not None:
      rows[:count] = np.argsort(-self._classes, kind='stable')
    return list(rows.reshape(-1, batch_size))

  def text_batch(
    self, rows: np.ndarray, part: np.ndarray | None = None
  ) -> feature_converters.Batch:
    """Makes the text of a global batch, or of a part of it.

    It is padded to the shape that holds the longest prompt and response of the
    global batch, so that all hosts use the same shape.

    Args:
      rows: int64 `[batch]`, rows of the global batch; rows beyond the last
        example are padding, with `example_mask` False.
      part: int64 `[rows]`, positions in `rows` to make; None for all.

    Returns:
      The batch of `converter`, its rows in the order of `part`.
    """
    mine = rows if part is None else rows[part]
    examples = [self.example(int(row)) for row in mine if row < len(self)]
    converter = self.converter.padded_to(*self._shape(rows))
    return converter(examples, batch_size=len(mine))

  def _shape(self, rows: np.ndarray) -> tuple[int, int]:
    """Returns the padded prompt and response lengths of a batch."""
    lengths = self._lengths[rows[rows < len(self)]]
    if self.padding is not None:
      return self.padding.fit(lengths)
    prompt, response = self._limits
    if not self.kind.responses:
      longest = int(lengths[:, 0].max())
      prompt = length_buckets_lib.padded_length(longest, prompt)
    return prompt, response

  def padding_share(self, first: int, last: int) -> float:
    """Returns the share of padding among the positions of training batches.

    Args:
      first: first step.
      last: last step + 1.
    """
    tokens = positions = 0
    for step in range(first, last):
      rows = self.train_rows(step)
      prompt, response = self._shape(rows)
      positions += len(rows) * (prompt + len(self.kind.responses) * response)
      tokens += int(self._num_tokens[rows].sum())
    return 1 - tokens / positions

  def describe_padding(self) -> str:
    """Describes the shapes of training batches and their share of padding.

    The share is computed over the first epoch, or over its first batches.
    """
    steps = min(-(-len(self) // self.batch_size), _STEPS_DESCRIBED)
    prompt, response = self._limits
    limit = prompt + len(self.kind.responses) * response
    whole = 1 - self._num_tokens.mean() / limit

    def shown(shape):
      return '+'.join(map(str, shape if self.kind.responses else shape[:1]))

    shapes = self.padding.shapes if self.padding else [self._limits]
    lengths = ', '.join(map(shown, shapes))
    if self.padding is None and not self.kind.responses:
      lengths = f'powers of two up to {lengths}'
    parts = 'prompt+response' if self.kind.responses else 'prompt'
    return (
      f'batches are padded to ({parts} tokens) {lengths}.'
      f' {self.padding_share(0, steps):.1%} of the computed tokens are'
      f' padding; with the shape {shown(self._limits)} alone it would be'
      f' {whole:.1%}.'
    )
