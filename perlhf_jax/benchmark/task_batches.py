"""What a benchmark computes on if it is given a task: the task's examples.

They come through the input pipeline, as in training.
"""

from collections.abc import Iterator
import dataclasses
import itertools

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import typing
from perlhf_jax.data import input_pipeline
from perlhf_jax.stages import train_reward


@dataclasses.dataclass(frozen=True)
class TaskBatches:
  """The batches of a task.

  Attributes:
    examples: with batches by length, as the configuration says.
  """

  examples: input_pipeline.Examples

  @property
  def objective(self) -> str | None:
    """What a reward model learns of it by; None if it can learn nothing."""
    kind = self.examples.kind
    return kind if kind in train_reward.SELECTION else None

  def prompts(self) -> typing.Batch:
    """Returns the first batch of prompts, in the order of the stream."""
    return _first(self.examples.prompts().at_one_shape())

  def rewards(self) -> typing.Batch:
    """Returns the first batch of a reward model, padded to the limits."""
    return _first(self.examples.at_one_shape())

  def by_length(self, count: int) -> Iterator[typing.Batch]:
    """Yields consecutive batches of training.

    They are those of the second window, for the first begins with its longest
    batch.

    Args:
      count: how many.
    """
    batches = input_pipeline.train_iterator(
      self.examples, self.examples.length_window
    )
    return itertools.islice(batches, count)


def load(
  start: loaded_model.LoadedModel, dataset: input_pipeline.DatasetConfig
) -> TaskBatches:
  """Reads a task, as training would."""
  return TaskBatches(start.load_examples(dataset))


def _first(examples: input_pipeline.Examples) -> typing.Batch:
  return next(input_pipeline.train_iterator(examples))
