"""Converts tokenised examples to the batches that models read.

A converter cuts and pads the features of a `kinds.Kind`. It is plain numpy and
uses no file, task or vocabulary. So training, evaluation and the scoring of a
list of strings make the same batches from the same text.

Truncation policy:
  * A prompt that is too long keeps its end (`keep_end`), EOS included, because
    the last turns of a dialogue matter most. `keep_start` keeps the beginning
    and appends EOS.
  * A response keeps its start. In reward batches EOS follows it, because the
    score is read there; a target of supervised tuning that was cut has no
    EOS, because a model must not learn to stop in the middle.

Each example is cut once, by `Converter.cut`; a batch of longer texts is an
error.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import kinds

PAD_ID = 0
EOS_ID = 1
TRUNCATE_PROMPT = ('keep_end', 'keep_start')

Example = Mapping[str, Any]
Batch = kinds.Batch

# A further feature of evaluation batches, int32 `[batch]`: the position of each
# example in its data set.
EXAMPLE_ROWS = 'example_rows'


@runtime_checkable
class TextVocabulary(Protocol):
  """The methods of a vocabulary that are used here."""

  def encode(self, s: str) -> Sequence[int]:
    """Token ids of a text, without EOS."""


def tokenize(vocabulary: TextVocabulary, text: str) -> np.ndarray:
  """Tokens of a prompt or a response with EOS, int32 `[length]`."""
  return np.asarray([*vocabulary.encode(text), EOS_ID], np.int32)


def strip_eos(tokens: np.ndarray) -> np.ndarray:
  """Removes the EOS at the end of tokens, if there is one."""
  ends = len(tokens) and tokens[-1] == EOS_ID
  return tokens[:-1] if ends else tokens


def truncate_prompt(
  tokens: np.ndarray, length: int, policy: str = 'keep_end'
) -> np.ndarray:
  """Cuts a prompt that ends with EOS to at most `length` tokens."""
  if len(tokens) <= length:
    return tokens
  if policy == 'keep_end':
    return tokens[-length:]
  if policy == 'keep_start':
    return _cut_before_eos(tokens, length)
  raise errors.ConfigError(
    f'truncate_prompt is {policy!r}; it must be one of'
    f' {", ".join(TRUNCATE_PROMPT)}.'
  )


def truncate_response(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cuts a response to at most `length` tokens, and keeps EOS as the last."""
  return tokens if len(tokens) <= length else _cut_before_eos(tokens, length)


def truncate_target(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cuts a target to at most `length` tokens, without EOS if it was cut."""
  return tokens[:length]


def _cut_before_eos(tokens: np.ndarray, length: int) -> np.ndarray:
  return np.append(tokens[: length - 1], np.int32(EOS_ID))


class Converter:
  """Cuts the examples of one kind, and pads them to batches.

  Attributes:
    kind: kind of the examples.
    prompt_length: maximum and padded length of prompts in tokens.
    response_length: maximum and padded length of each response in tokens.
    truncate_prompt: which end of a long prompt stays.

  Examples:
    Supervised tuning: the response is the target of the decoder. Two rows for
    one example:
    >>> converter = Converter(kinds.SFT, prompt_length=4, response_length=3)
    >>> batch = converter([{'inputs': np.array([7, 8, 1]),
    ...                     'targets': np.array([5, 1])}], batch_size=2)
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    encoder_input_tokens [[7, 8, 1, 0], [0, 0, 0, 0]]
    decoder_input_tokens [[0, 5, 1], [0, 0, 0]]
    decoder_target_tokens [[5, 1, 0], [0, 0, 0]]
    decoder_loss_weights [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    example_mask [True, False]

    Preferences, with a rejected response that is cut and keeps its EOS:
    >>> converter = Converter(kinds.PAIRWISE, prompt_length=3,
    ...                       response_length=3)
    >>> batch = converter([converter.cut({
    ...     'inputs': np.array([7, 1]),
    ...     'chosen': np.array([5, 1]),
    ...     'rejected': np.array([6, 5, 4, 3, 1])})])
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    prompt_tokens [[7, 1, 0]]
    prompt_mask [[True, True, False]]
    chosen_tokens [[5, 1, 0]]
    chosen_mask [[True, True, False]]
    rejected_tokens [[6, 5, 1]]
    rejected_mask [[True, True, True]]
    margins [0.0]
    example_mask [True]

    Judged responses, label 1 for good and 0 for bad, with a prompt that is cut
    and keeps its end:
    >>> converter = Converter(kinds.POINTWISE, prompt_length=3,
    ...                       response_length=2)
    >>> batch = converter([converter.cut({
    ...     'inputs': np.array([9, 8, 7, 1]),
    ...     'targets': np.array([5, 1]), 'label': 1.0})])
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    prompt_tokens [[8, 7, 1]]
    prompt_mask [[True, True, True]]
    response_tokens [[5, 1]]
    response_mask [[True, True]]
    labels [1.0]
    example_mask [True]

    Prompts alone, for a policy to answer:
    >>> converter = Converter(kinds.PROMPTS, prompt_length=4)
    >>> batch = converter([{'inputs': np.array([9, 8, 1])}])
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    prompt_tokens [[9, 8, 1, 0]]
    prompt_mask [[True, True, True, False]]
    example_mask [True]
  """

  def __init__(
    self,
    kind: kinds.Kind,
    prompt_length: int,
    response_length: int = 0,
    truncate_prompt: str = 'keep_end',
  ):
    if truncate_prompt not in TRUNCATE_PROMPT:
      raise errors.ConfigError(
        f'truncate_prompt is {truncate_prompt!r}; it must be one of'
        f' {", ".join(TRUNCATE_PROMPT)}.'
      )
    self.kind = kind
    self.prompt_length = prompt_length
    self.response_length = response_length
    self.truncate_prompt = truncate_prompt

  def padded_to(self, prompt_length: int, response_length: int) -> 'Converter':
    """Returns a converter that cuts and pads to other lengths."""
    return Converter(
      self.kind, prompt_length, response_length, self.truncate_prompt
    )

  def of_prompts(self) -> 'Converter':
    """Returns a converter of the same prompts without responses."""
    return Converter(
      kinds.PROMPTS, self.prompt_length, truncate_prompt=self.truncate_prompt
    )

  def cut(self, example: Example) -> dict[str, Any]:
    """Cuts the texts of one example to the maximum lengths.

    Args:
      example: task features: text as tokens `[length]` that end with EOS.
    """
    result = dict(example)
    result[kinds.INPUTS] = truncate_prompt(
      example[kinds.INPUTS], self.prompt_length, self.truncate_prompt
    )
    for name in self.kind.responses:
      cut = (
        truncate_response
        if self.kind.texts[name].ends_with_eos
        else truncate_target
      )
      result[name] = cut(example[name], self.response_length)
    return result

  def __call__(
    self, examples: Sequence[Example], batch_size: int | None = None
  ) -> Batch:
    """Makes a batch of at most `batch_size` examples.

    Args:
      examples: task features of each example, with texts that `cut` has cut.
      batch_size: number of rows; by default the number of examples. Rows after
        the last example are padding, with `example_mask` False.

    Returns:
      `kinds.Kind.model_features`, with `example_mask` `[batch]` True on real
      rows.
    """
    rows = len(examples) if batch_size is None else batch_size
    if len(examples) > rows:
      raise ValueError(f'{len(examples)} examples in a batch of {rows}.')
    batch = {}
    for name, text in self.kind.texts.items():
      is_prompt = name == kinds.INPUTS
      length = self.prompt_length if is_prompt else self.response_length
      tokens, mask = _pad(examples, name, rows, length)
      batch[f'{text.batch}_tokens'], batch[f'{text.batch}_mask'] = tokens, mask
    for name, number in self.kind.numbers.items():
      batch[number.batch] = _numbers(examples, name, rows)
    if self.kind.arrange is not None:
      batch = self.kind.arrange(batch)
    batch['example_mask'] = np.arange(rows) < len(examples)
    return batch


def _pad(
  examples: Sequence[Example], name: str, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and mask of one feature, both [rows, length]."""
  tokens = np.full((rows, length), PAD_ID, np.int32)
  mask = np.zeros((rows, length), bool)
  for row, example in enumerate(examples):
    values = example[name]
    tokens[row, : len(values)] = values
    mask[row, : len(values)] = True
  return tokens, mask


def _numbers(examples: Sequence[Example], name: str, rows: int) -> np.ndarray:
  """Returns a numeric feature [rows], zero if absent and on padding."""
  numbers = np.zeros(rows, np.float32)
  for row, example in enumerate(examples):
    numbers[row] = example.get(name, 0.0)
  return numbers
