"""The configuration of a data set."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from perlhf_jax.core import checks
from perlhf_jax.core import errors

LengthBuckets = Annotated[
  int,
  checks.Range(
    least=0,
    most=8,
    hint='each shape is a program to compile; 0 means one shape',
  ),
]
LengthWindow = Annotated[
  int, checks.Range(least=1, hint='the number of batches per window')
]


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """Data set to read; gin builds it, with the names of t5x's DatasetConfig.

  Attributes:
    mixture_or_task_name: a registered SeqIO task or mixture.
    task_feature_lengths: maximum number of tokens of a prompt (`inputs`) and of
      a response (`targets`; also for chosen and rejected responses), EOS
      included. Prompt tasks need `inputs` only. For tasks with images, `images`
      is the maximum number of images per example; 1 by default.
    split: name of the split.
    batch_size: examples in a global batch.
    shuffle: whether training goes through each epoch in a random order.
    seed: seed of that order.
    use_cached: read the cache that `seqio_cache_tasks` wrote into
      PERLHF_CACHE_DIR.
    module: a module to import first, which registers tasks.
    max_examples: maximum number of rows to read (of each task of a mixture).
    skip_bad_rows: leave out unusable rows, counted and reported, instead of
      stopping at the first.
    truncate_prompt: `keep_end` (the default, for dialogues) or `keep_start`.
    refuse_long_prompts: stop at a prompt that is too long, and do not cut it.
    part: `(index, count)`: read only the examples whose prompt a hash puts
      into part `index` of `count`. Parts share no prompt, so reward models
      trained on different parts can check each other. None reads all.
    length_buckets: maximum number of shapes, pairs of a prompt and a response
      length, to which batches are padded. The shapes are chosen from the
      lengths of the examples. Training and evaluation then group examples of
      similar lengths. With 0 or 1, examples keep their shuffled order, and all
      batches are padded to `task_feature_lengths` (prompts alone, to a power of
      two).
    length_window: number of training batches within which examples are grouped
      by length; more leave less padding, fewer are more random.
  """

  mixture_or_task_name: str
  task_feature_lengths: Mapping[str, Annotated[int, checks.AtLeastOne]]
  split: str = 'train'
  batch_size: Annotated[int, checks.AtLeastOne] = 32
  shuffle: bool = True
  seed: Annotated[int, checks.NotNegative] = 0
  use_cached: bool = False
  module: str | None = None
  max_examples: Annotated[int | None, checks.AtLeastOne] = None
  skip_bad_rows: bool = False
  truncate_prompt: Annotated[str, checks.OneOf('keep_end', 'keep_start')] = (
    'keep_end'
  )
  refuse_long_prompts: bool = False
  part: tuple[int, int] | None = None
  length_buckets: LengthBuckets = 8
  length_window: LengthWindow = 100

  def __post_init__(self):
    checks.check_fields(self)
    if self.part is None:
      return
    index, count = self.part
    if not 0 <= index < count:
      raise errors.ConfigError(
        f'DatasetConfig.part is {self.part}: give (index, count), with the'
        ' index from 0 up to count - 1.'
      )


def check_lengths(task_feature_lengths: Mapping[str, int]) -> None:
  """Checks that both lengths are given.

  Raises:
    ConfigError: a length is missing.
  """
  for name in ('inputs', 'targets'):
    if name not in task_feature_lengths:
      raise errors.ConfigError(
        f'TASK_FEATURE_LENGTHS has no {name!r}: give the maximum number of '
        "tokens of a prompt ('inputs') and of a response ('targets')."
      )
