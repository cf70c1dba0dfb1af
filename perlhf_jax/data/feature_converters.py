"""Converts tokenised examples to the batches that models read.

Each converter declares the features it takes from a task (`TASK_FEATURES`) and
the features it gives to a model (`MODEL_FEATURES`), truncates, and pads.
Converters are plain numpy and use no file, task or vocabulary. So training,
evaluation and the scoring of a list of strings make the same batches from the
same text.

Truncation policy:
  * A prompt that is too long keeps its end (`keep_end`), EOS included, because
    the last turns of a dialogue matter most. `keep_start` keeps the beginning
    and appends EOS.
  * A response keeps its start. In reward batches EOS follows it, because the
    score is read there; a target of supervised tuning that was cut has no
    EOS, because a model must not learn to stop in the middle.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import row_checks

PAD_ID = 0
EOS_ID = 1
TRUNCATE_PROMPT = ('keep_end', 'keep_start')

Example = Mapping[str, Any]
Batch = dict[str, np.ndarray]


class FeatureSpec(NamedTuple):
  """Type and rank of a feature; model features count the batch axis."""

  dtype: str
  rank: int


_TOKENS = FeatureSpec('int32', 1)
_TOKEN_BATCH = FeatureSpec('int32', 2)
_MASK_BATCH = FeatureSpec('bool', 2)
_EXAMPLE_MASK = FeatureSpec('bool', 1)

# Further features of batches with images, of every kind; see
# `images.pixel_batches`.
IMAGE_FEATURES: Mapping[str, FeatureSpec] = {
  'images': FeatureSpec('uint8', 5),
  'image_mask': FeatureSpec('bool', 2),
}
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


class Converter(abc.ABC):
  """Base class of the four converters: lengths, batch size and masks.

  Attributes:
    TASK_FEATURES: required features of an example, each either tokens [length]
      that end with EOS, or a number.
    OPTIONAL_TASK_FEATURES: optional features, with their defaults.
    MODEL_FEATURES: names, types and ranks of the batch.
  """

  TASK_FEATURES: ClassVar[dict[str, FeatureSpec]]
  OPTIONAL_TASK_FEATURES: ClassVar[dict[str, float]] = {}
  MODEL_FEATURES: ClassVar[dict[str, FeatureSpec]]

  def __init__(
    self,
    prompt_length: int,
    response_length: int = 0,
    truncate_prompt: str = 'keep_end',
  ):
    if truncate_prompt not in TRUNCATE_PROMPT:
      raise errors.ConfigError(
        f'truncate_prompt is {truncate_prompt!r}; it must be one of'
        f' {", ".join(TRUNCATE_PROMPT)}.'
      )
    self.prompt_length = prompt_length
    self.response_length = response_length
    self.truncate_prompt = truncate_prompt

  def padded_to(self, prompt_length: int, response_length: int) -> 'Converter':
    """Returns a converter that pads and cuts to other lengths."""
    return type(self)(prompt_length, response_length, self.truncate_prompt)

  def truncate(self, example: Example) -> dict[str, Any]:
    """Cuts the features of one example; cutting twice changes nothing."""
    return {
      name: self._truncate_feature(name, value)
      for name, value in example.items()
    }

  def __call__(
    self, examples: Sequence[Example], batch_size: int | None = None
  ) -> Batch:
    """Makes a batch of at most `batch_size` examples.

    Args:
      examples: task features of each example.
      batch_size: number of rows; by default the number of examples. Rows after
        the last example are padding, with `example_mask` False.

    Returns:
      MODEL_FEATURES, with `example_mask` [batch] True on real rows.
    """
    rows = len(examples) if batch_size is None else batch_size
    if len(examples) > rows:
      raise ValueError(f'{len(examples)} examples in a batch of {rows}.')
    batch = self._convert([self.truncate(e) for e in examples], rows)
    batch['example_mask'] = np.arange(rows) < len(examples)
    return batch

  def _truncate_feature(self, name: str, value):
    if name == 'inputs':
      return truncate_prompt(value, self.prompt_length, self.truncate_prompt)
    if self.TASK_FEATURES.get(name) == _TOKENS:
      return truncate_response(value, self.response_length)
    return value

  @abc.abstractmethod
  def _convert(self, examples: list[dict[str, Any]], rows: int) -> Batch:
    """Pads truncated examples to `rows` rows."""

  def _prompts(self, examples: list[dict[str, Any]], rows: int) -> Batch:
    tokens, mask = _pad(examples, 'inputs', rows, self.prompt_length)
    return {'prompt_tokens': tokens, 'prompt_mask': mask}


class SftConverter(Converter):
  """Supervised tuning: the response is the target of the decoder.

  Decoder inputs are the targets shifted right by one, starting with 0. The
  loss counts every real target token, EOS included.

  Example, two rows for one example:
    >>> converter = SftConverter(prompt_length=4, response_length=3)
    >>> batch = converter([{'inputs': np.array([7, 8, 1]),
    ...                     'targets': np.array([5, 1])}], batch_size=2)
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    encoder_input_tokens [[7, 8, 1, 0], [0, 0, 0, 0]]
    decoder_input_tokens [[0, 5, 1], [0, 0, 0]]
    decoder_target_tokens [[5, 1, 0], [0, 0, 0]]
    decoder_loss_weights [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    example_mask [True, False]
  """

  TASK_FEATURES: ClassVar = {'inputs': _TOKENS, 'targets': _TOKENS}
  MODEL_FEATURES: ClassVar = {
    'encoder_input_tokens': _TOKEN_BATCH,
    'decoder_input_tokens': _TOKEN_BATCH,
    'decoder_target_tokens': _TOKEN_BATCH,
    'decoder_loss_weights': FeatureSpec('float32', 2),
    'example_mask': _EXAMPLE_MASK,
  }

  def _truncate_feature(self, name, value):
    if name == 'targets':
      return truncate_target(value, self.response_length)
    return super()._truncate_feature(name, value)

  def _convert(self, examples, rows):
    prompts = self._prompts(examples, rows)
    targets, mask = _pad(examples, 'targets', rows, self.response_length)
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1]
    return {
      'encoder_input_tokens': prompts['prompt_tokens'],
      'decoder_input_tokens': shifted,
      'decoder_target_tokens': targets,
      'decoder_loss_weights': mask.astype(np.float32),
    }


class PairwiseConverter(Converter):
  """Preferences: two responses to one prompt, the first of them chosen.

  Example, with a rejected response that is cut and keeps its EOS:
    >>> converter = PairwiseConverter(prompt_length=3, response_length=3)
    >>> batch = converter([{'inputs': np.array([7, 1]),
    ...                     'chosen': np.array([5, 1]),
    ...                     'rejected': np.array([6, 5, 4, 3, 1])}])
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
  """

  TASK_FEATURES: ClassVar = {
    'inputs': _TOKENS,
    'chosen': _TOKENS,
    'rejected': _TOKENS,
  }
  OPTIONAL_TASK_FEATURES: ClassVar = {'margin': 0.0}
  MODEL_FEATURES: ClassVar = {
    'prompt_tokens': _TOKEN_BATCH,
    'prompt_mask': _MASK_BATCH,
    'chosen_tokens': _TOKEN_BATCH,
    'chosen_mask': _MASK_BATCH,
    'rejected_tokens': _TOKEN_BATCH,
    'rejected_mask': _MASK_BATCH,
    'margins': FeatureSpec('float32', 1),
    'example_mask': _EXAMPLE_MASK,
  }

  def _convert(self, examples, rows):
    batch = self._prompts(examples, rows)
    for name in ('chosen', 'rejected'):
      tokens, mask = _pad(examples, name, rows, self.response_length)
      batch[f'{name}_tokens'], batch[f'{name}_mask'] = tokens, mask
    batch['margins'] = _numbers(examples, 'margin', rows)
    return batch


class PointwiseConverter(Converter):
  """Judged responses: label 1 is good, 0 is bad.

  Example, with a prompt that is cut and keeps its end:
    >>> converter = PointwiseConverter(prompt_length=3, response_length=2)
    >>> batch = converter([{'inputs': np.array([9, 8, 7, 1]),
    ...                     'targets': np.array([5, 1]), 'label': 1.0}])
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    prompt_tokens [[8, 7, 1]]
    prompt_mask [[True, True, True]]
    response_tokens [[5, 1]]
    response_mask [[True, True]]
    labels [1.0]
    example_mask [True]
  """

  TASK_FEATURES: ClassVar = {
    'inputs': _TOKENS,
    'targets': _TOKENS,
    'label': FeatureSpec('float32', 0),
  }
  MODEL_FEATURES: ClassVar = {
    'prompt_tokens': _TOKEN_BATCH,
    'prompt_mask': _MASK_BATCH,
    'response_tokens': _TOKEN_BATCH,
    'response_mask': _MASK_BATCH,
    'labels': FeatureSpec('float32', 1),
    'example_mask': _EXAMPLE_MASK,
  }

  def _convert(self, examples, rows):
    batch = self._prompts(examples, rows)
    tokens, mask = _pad(examples, 'targets', rows, self.response_length)
    batch['response_tokens'], batch['response_mask'] = tokens, mask
    batch['labels'] = _numbers(examples, 'label', rows)
    return batch


class PromptConverter(Converter):
  """Prompts only, for a policy to answer.

  Example:
    >>> converter = PromptConverter(prompt_length=4)
    >>> batch = converter([{'inputs': np.array([9, 8, 1])}])
    >>> for name, array in batch.items():
    ...   print(name, array.tolist())
    prompt_tokens [[9, 8, 1, 0]]
    prompt_mask [[True, True, True, False]]
    example_mask [True]
  """

  TASK_FEATURES: ClassVar = {'inputs': _TOKENS}
  MODEL_FEATURES: ClassVar = {
    'prompt_tokens': _TOKEN_BATCH,
    'prompt_mask': _MASK_BATCH,
    'example_mask': _EXAMPLE_MASK,
  }

  def _convert(self, examples, rows):
    return self._prompts(examples, rows)


CONVERTERS: Mapping[str, type[Converter]] = {
  'sft': SftConverter,
  'pairwise': PairwiseConverter,
  'pointwise': PointwiseConverter,
  'prompts': PromptConverter,
}


def kind_of(features: Sequence[str]) -> str | None:
  """Returns the kind of a task with these features; None if unknown."""
  for kind, converter in CONVERTERS.items():
    optional = {*converter.OPTIONAL_TASK_FEATURES, row_checks.IMAGES}
    if kind == 'prompts':
      optional.add(row_checks.REFERENCES)
    if set(features) - optional == set(converter.TASK_FEATURES):
      return kind
  return None


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
