"""Refuses batches of lines that do not fit, and says which line is to blame."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.training import memory
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

# Of one text. Blocks of attention let small models read more than this in the
# memory of a laptop, and for hours.
MAX_TOKENS = 65_536


@dataclasses.dataclass(frozen=True)
class Length:
  """A length of the largest batch.

  Attributes:
    tokens: to which its rows are padded.
    reason: what makes it so long, such as `in.jsonl:17 has a prompt of 25,013
      tokens`.
    remedy: what to give for a shorter one, `{}` being the tokens that fit.
  """

  tokens: int
  reason: str
  remedy: str


# (rows of a device, parts of `tensor`, *lengths) -> bytes of a device, at least
Bound = Callable[..., int]


@contextlib.contextmanager
def must_fit(
  bound: Bound,
  mesh: partitioning.LogicalMesh,
  batch_size: int,
  lengths: Sequence[Length],
) -> Iterator[None]:
  """Checks the largest batch before anything is compiled, and again then.

  Args:
    bound: of `models.activation_bytes`.
    mesh: the mesh.
    batch_size: rows.
    lengths: of the batch that needs most; none if there is no batch.

  Raises:
    ConfigError: a text is longer than `MAX_TOKENS`, or there is too little
      memory, for the bound or, in the block, for what the compiler says.
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
    """Raises a ConfigError for a text without end, or if no bound fits."""
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
    """Says what is too long, and what would fit.

    Args:
      needed: bytes of a device.
      free: likewise.
      at_least: how exact `needed` is.
    """
    # What the compiler says is more than the bound, of smaller batches too.
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
      f'{blamed.reason}; a batch of {self.batch_size} needs {at_least}'
      f'{host_memory.gibibytes(needed)} of memory on a device beside the '
      f'weights, and {host_memory.gibibytes(free)} are free. {advice.strip()}'
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
    lengths: tokens of each, by its index in the file.
    limit: at which they are cut; None if they are not.
    padded: to which length they are padded.
    remedy: as of `Length`.
  """
  index = max(lengths, key=lambda i: lengths[i])
  count = lengths[index]
  cut = f', cut to {limit:,}' if limit is not None and count > limit else ''
  reason = f'{path}:{index + 1} has a {kind} of {count:,} tokens{cut}'
  return Length(padded, reason, remedy)


def _largest(fits: Callable[[int], bool], below: int) -> int:
  """Returns `below`, halved until it fits; 0 if nothing does."""
  while below and not fits(below):
    below //= 2
  return below
