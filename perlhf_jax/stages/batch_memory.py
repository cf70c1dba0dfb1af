"""Refuses batches of lines that do not fit, and names the longest line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.training import memory
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

# Longest text. With blockwise attention, small models could read longer texts
# in the memory of a laptop, but it would take hours.
MAX_TOKENS = 65_536


@dataclasses.dataclass(frozen=True)
class Length:
  """A padded length of the largest batch.

  Attributes:
    tokens: the length to which rows are padded.
    reason: the cause of the length, such as `in.jsonl:17 has a prompt of 25,013
      tokens`.
    remedy: the flag that shortens it, with `{}` for the tokens that fit.
  """

  tokens: int
  reason: str
  remedy: str


# (rows per device, size of axis `tensor`, *lengths) -> least bytes per device
Bound = Callable[..., int]


@contextlib.contextmanager
def must_fit(
  bound: Bound,
  mesh: partitioning.LogicalMesh,
  batch_size: int,
  lengths: Sequence[Length],
) -> Iterator[None]:
  """Checks that the largest batch fits, and explains failures in its block.

  Checks the bound at once. In the block, replaces a `NotEnoughMemoryError`,
  which states the memory that the compiler computes.

  Args:
    bound: from `models.activation_bytes`.
    mesh: the mesh.
    batch_size: rows per batch.
    lengths: the lengths of the largest batch; empty if there is no batch.

  Raises:
    ConfigError: a text is longer than `MAX_TOKENS`, or there is too little
      memory.
  """
  if not lengths:
    yield
    return
  largest = _LargestBatch(bound, mesh, batch_size, lengths)
  with multihost.together():
    largest.check()
  try:
    yield
  except memory.NotEnoughMemoryError as error:
    raise largest.refusal(error.needed_bytes, error.free_bytes) from error


@dataclasses.dataclass(frozen=True)
class _LargestBatch:
  """The arguments of `must_fit`."""

  bound: Bound
  mesh: partitioning.LogicalMesh
  batch_size: int
  lengths: Sequence[Length]

  def check(self) -> None:
    """Raises a ConfigError if a text is too long or the bound does not fit."""
    for length in self.lengths:
      if length.tokens > MAX_TOKENS:
        raise errors.ConfigError(
          f'{length.reason}; at most {MAX_TOKENS:,} are read. Give '
          f'{length.remedy.format(MAX_TOKENS)}.'
        )
    needed, free = self._bytes(), memory.device_free_bytes()
    if free is not None and needed > free:
      raise self.refusal(needed, free, 'at least ')

  def refusal(
    self, needed: int, free: int, at_least: str = ''
  ) -> errors.ConfigError:
    """Returns an error that says which text is too long, and what would fit.

    Args:
      needed: bytes needed per device.
      free: bytes free per device.
      at_least: 'at least ' if `needed` is a lower bound.
    """
    # The compiler's figure exceeds the bound. Assumes the same ratio for
    # smaller batches.
    ratio = needed / self._bytes()

    def fits(**change):
      return self._bytes(**change) * ratio <= free

    to_blame = min(
      range(len(self.lengths)),
      key=lambda i: self._bytes(lengths=self._shortened(i, 1)),
    )
    blamed = self.lengths[to_blame]
    rows = _largest(
      lambda size: fits(batch_size=size * self._shards),
      self.batch_size // self._shards,
    )
    tokens = _largest(
      lambda size: fits(lengths=self._shortened(to_blame, size)), blamed.tokens
    )
    remedies = []
    if tokens:
      remedies.append(blamed.remedy.format(tokens))
    if rows:
      remedies.append(f'--batch_size={rows * self._shards}')
    advice = f'Give {" or ".join(remedies)}.' if remedies else ''
    if not rows and self.batch_size > self._shards:
      advice += f' A batch of {self._shards} does not fit either.'
    return errors.ConfigError(
      f'{blamed.reason}; a batch of {self.batch_size} needs '
      f'{at_least}{host_memory.gibibytes(needed)} of memory per device '
      f'besides the weights, but only {host_memory.gibibytes(free)} are free. '
      f'{advice.strip()}'
    )

  @property
  def _shards(self) -> int:
    return math.prod(self.mesh.shape[a] for a in partitioning.BATCH_AXES)

  def _shortened(self, index: int, tokens: int) -> list[int]:
    lengths = [length.tokens for length in self.lengths]
    lengths[index] = tokens
    return lengths

  def _bytes(self, *, batch_size=None, lengths=None) -> int:
    rows = (batch_size or self.batch_size) // self._shards
    lengths = lengths or [length.tokens for length in self.lengths]
    return self.bound(rows, self.mesh.shape['tensor'], *lengths)


def line_length(
  kind: str,
  path: str,
  lengths: Mapping[int, int],
  limit: int | None,
  padded: int,
  remedy: str,
) -> Length:
  """Describes the longest text of a batch.

  Args:
    kind: `prompt` or `response`.
    path: the file.
    lengths: tokens per text, by its index in the file.
    limit: the length to which texts are cut; None if they are not.
    padded: the length to which texts are padded.
    remedy: see `Length`.
  """
  index = max(lengths, key=lambda i: lengths[i])
  count = lengths[index]
  cut = f', cut to {limit:,}' if limit is not None and count > limit else ''
  reason = f'{path}:{index + 1} has a {kind} of {count:,} tokens{cut}'
  return Length(padded, reason, remedy)


def _largest(fits: Callable[[int], bool], below: int) -> int:
  """Returns `below`, halved until it fits; 0 if nothing fits."""
  while below and not fits(below):
    below //= 2
  return below
