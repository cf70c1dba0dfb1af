"""The four kinds of tasks: sft, pairwise, pointwise and prompts.

A `Kind` says which features the examples of a task have, which examples are
unusable, how texts are cut, which features a model reads, and which metric
chooses the checkpoint of a reward model. A task names its kind; everything else
reads the record.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import NamedTuple

import numpy as np

from perlhf_jax.core import errors

# The prompt, a feature of every kind.
INPUTS = 'inputs'
# List features, for tasks that declare them: the images of an example, each an
# encoded PNG or JPEG (bytes) or the path of such a file (str); and, for
# prompts, the answers that a judge accepts.
IMAGES, REFERENCES = LISTS = 'images', 'references'

Batch = dict[str, np.ndarray]


class FeatureSpec(NamedTuple):
  """Type and rank of a feature of batches; the batch axis counts."""

  dtype: str
  rank: int


class Text(NamedTuple):
  """A text feature.

  Attributes:
    what: its name in messages.
    batch: start of the names of its tokens and mask in a batch.
    ends_with_eos: whether EOS follows a response that was cut.
  """

  what: str
  batch: str
  ends_with_eos: bool = True


class Number(NamedTuple):
  """A number feature.

  Attributes:
    batch: its name in a batch.
    default: its value in an example without it; None if it is required.
    allowed: the only allowed values; empty if any finite number is allowed.
  """

  batch: str
  default: float | None = None
  allowed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
  """One kind of task.

  Attributes:
    name: its name.
    texts: text features, the prompt first.
    model_features: features of a batch without images. A batch of a task with
      images has two more: `images`, uint8 of rank 5, and `image_mask`, bool of
      rank 2; see `images.pixel_batches`.
    numbers: number features.
    lists: list features that a task may declare.
    distinct: text features that must differ.
    arrange: makes the model's features of padded tokens and masks; None if the
      model reads these.
    reward_metric: the validation metric that chooses the best reward model;
      None if no reward model can be trained on the kind.
    shows_answers: whether `targets` are right answers.
  """

  name: str
  texts: Mapping[str, Text]
  model_features: Mapping[str, FeatureSpec]
  numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)
  lists: tuple[str, ...] = (IMAGES,)
  distinct: tuple[str, ...] = ()
  arrange: Callable[[Batch], Batch] | None = None
  reward_metric: str | None = None
  shows_answers: bool = False

  @property
  def responses(self) -> tuple[str, ...]:
    """The text features after the prompt."""
    return tuple(name for name in self.texts if name != INPUTS)

  @property
  def required(self) -> tuple[str, ...]:
    """The features that every example must have."""
    numbers = self.numbers.items()
    return (*self.texts, *(n for n, each in numbers if each.default is None))

  @property
  def optional(self) -> tuple[str, ...]:
    """The features that have a default."""
    return tuple(n for n in self.numbers if n not in self.required)

  @property
  def limited(self) -> tuple[str, ...]:
    """The entries of TASK_FEATURE_LENGTHS that the kind needs."""
    return (INPUTS, 'targets') if self.responses else (INPUTS,)

  def declare(self, *, images: bool, references: bool) -> tuple[str, ...]:
    """Returns the list features of a task.

    Args:
      images: whether its examples have images.
      references: whether its examples have references.

    Raises:
      ConfigError: the kind has no references.
    """
    if references and REFERENCES not in self.lists:
      raise errors.ConfigError(
        f'A task of the kind {self.name!r} takes no references; only prompts'
        ' do.'
      )
    return (IMAGES,) * images + (REFERENCES,) * references


def _teacher_forced(batch: Batch) -> Batch:
  """Shifts the targets right by one, starting with 0, as decoder inputs.

  The loss counts every real target token, EOS included.
  """
  targets = batch['target_tokens']
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  return {
    'encoder_input_tokens': batch['prompt_tokens'],
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': batch['target_mask'].astype(np.float32),
  }


_TOKENS = FeatureSpec('int32', 2)
_MASK = FeatureSpec('bool', 2)
_NUMBER = FeatureSpec('float32', 1)
_EXAMPLE_MASK = FeatureSpec('bool', 1)
_PROMPT = Text('prompt', 'prompt')

SFT = Kind(
  'sft',
  # A target without EOS, since a model must not learn to stop in the middle.
  {INPUTS: _PROMPT, 'targets': Text('response', 'target', ends_with_eos=False)},
  {
    'encoder_input_tokens': _TOKENS,
    'decoder_input_tokens': _TOKENS,
    'decoder_target_tokens': _TOKENS,
    'decoder_loss_weights': FeatureSpec('float32', 2),
    'example_mask': _EXAMPLE_MASK,
  },
  arrange=_teacher_forced,
  shows_answers=True,
)
PAIRWISE = Kind(
  'pairwise',
  {
    INPUTS: _PROMPT,
    'chosen': Text('chosen response', 'chosen'),
    'rejected': Text('rejected response', 'rejected'),
  },
  {
    'prompt_tokens': _TOKENS,
    'prompt_mask': _MASK,
    'chosen_tokens': _TOKENS,
    'chosen_mask': _MASK,
    'rejected_tokens': _TOKENS,
    'rejected_mask': _MASK,
    'margins': _NUMBER,
    'example_mask': _EXAMPLE_MASK,
  },
  numbers={'margin': Number('margins', default=0.0)},
  distinct=('chosen', 'rejected'),
  reward_metric='pairwise_accuracy',
)
POINTWISE = Kind(
  'pointwise',
  {INPUTS: _PROMPT, 'targets': Text('response', 'response')},
  {
    'prompt_tokens': _TOKENS,
    'prompt_mask': _MASK,
    'response_tokens': _TOKENS,
    'response_mask': _MASK,
    'labels': _NUMBER,
    'example_mask': _EXAMPLE_MASK,
  },
  numbers={'label': Number('labels', allowed=(0, 1))},
  reward_metric='roc_auc',
)
PROMPTS = Kind(
  'prompts',
  {INPUTS: _PROMPT},
  {
    'prompt_tokens': _TOKENS,
    'prompt_mask': _MASK,
    'example_mask': _EXAMPLE_MASK,
  },
  lists=LISTS,
)
KINDS: Mapping[str, Kind] = {
  kind.name: kind for kind in (SFT, PAIRWISE, POINTWISE, PROMPTS)
}


def named(name: str, owner: str) -> Kind:
  """Returns the kind of a name.

  Args:
    name: sft, pairwise, pointwise or prompts.
    owner: what has the kind, for messages.

  Raises:
    ConfigError: the name is unknown.
  """
  if name not in KINDS:
    raise errors.ConfigError(
      f'{owner} has the unknown kind {name!r}; known are {", ".join(KINDS)}.'
    )
  return KINDS[name]


def of_features(features: Iterable[str]) -> Kind | None:
  """Returns the kind of a task with these features; None if unknown."""
  features = set(features)
  for kind in KINDS.values():
    if features - {*kind.optional, *kind.lists} == set(kind.required):
      return kind
  return None
