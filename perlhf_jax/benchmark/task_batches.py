"""Batches of a benchmark with a task, from the input pipeline of training."""

from collections.abc import Iterator
import dataclasses
import itertools

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import typing
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds


@dataclasses.dataclass(frozen=True)
class TaskBatches:
  """The batches of a task.

  Attributes:
    examples: the examples, with batches grouped by length as configured.
  """

  examples: input_pipeline.Examples

  @property
  def objective(self) -> kinds.Kind | None:
    """The objective of a reward model on the task; None if there is none."""
    kind = self.examples.kind
    return None if kind.reward_metric is None else kind

  def prompts(self) -> typing.Batch:
    """Returns the first batch of prompts, in the order of the stream."""
    return _first(self.examples.prompts().at_one_shape())

  def rewards(self) -> typing.Batch:
    """Returns the first batch of a reward model, padded to the limits."""
    return _first(self.examples.at_one_shape())

  def by_length(self, count: int) -> Iterator[typing.Batch]:
    """Yields consecutive training batches.

    Starts at the second window, because the first window begins with its
    longest batch.

    Args:
      count: number of batches.
    """
    batches = input_pipeline.train_iterator(
      self.examples, self.examples.length_window
    )
    return itertools.islice(batches, count)


def load(
  start: loaded_model.LoadedModel, dataset: input_pipeline.DatasetConfig
) -> TaskBatches:
  """Reads a task as training does."""
  return TaskBatches(start.load_examples(dataset))


def _first(examples: input_pipeline.Examples) -> typing.Batch:
  return next(input_pipeline.train_iterator(examples))
