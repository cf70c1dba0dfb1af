"""LoRA: low-rank adapters in a Linen collection of their own.

An adapted dense layer computes `x·W + (x·A)·B·scale`. `A` (`lora_a`, of shape
`[in, rank]`) starts random, `B` (`lora_b`, `[rank, out]`) starts at zero, and
training never forms `A·B`. DoRA scales the result, see `dora`. `A` and `B` are
in the collection `lora` beside `params`, so the backbone's tree is the same
with and without adapters, and several roles can share one backbone.

Source: Hu et al. 2021 (arXiv:2106.09685) section 4.1. By default every
attention projection is adapted, as in arXiv:2403.10704 section 2.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.models import dora as dora_lib
from perlhf_jax.models import products

_RANK = checks.Range(
  least=1, most=65_536, hint='for full tuning use gin/lora/none.gin'
)

ATTENTION_PROJECTIONS = (r'.*attention/(query|key|value|out)',)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What to adapt and how strongly.

  Attributes:
    rank: inner width of every adapter.
    alpha: numerator of the scale; `rank` if None, for a scale of 1.
    dropout_rate: dropout of the adapter's input; off if `deterministic`.
    rs_lora: divide by sqrt(rank) instead of rank (arXiv:2312.03732), so that
      updates of high ranks do not shrink.
    target_modules: regular expressions; each must match the whole path of at
      least one dense layer, such as 'encoder/layers_0/attention/query'. By
      default every attention projection.
    dora: learn the norm of each output feature's weights apart from their
      direction, see `dora`.
  """

  rank: Annotated[int, _RANK] = 8
  alpha: Annotated[float | None, checks.Positive] = None
  dropout_rate: Annotated[float, checks.Range(least=0, below=1)] = 0.0
  rs_lora: bool = False
  target_modules: Sequence[str] = ATTENTION_PROJECTIONS
  dora: bool = False

  def __post_init__(self):
    checks.check_fields(self)
    object.__setattr__(self, 'target_modules', tuple(self.target_modules))

  @property
  def scale(self) -> float:
    """The factor on `(x·A)·B`."""
    alpha = self.rank if self.alpha is None else self.alpha
    return alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)

  @property
  def method(self) -> str:
    """What users call such adapters."""
    return 'DoRA' if self.dora else 'LoRA'

  @property
  def title(self) -> str:
    """One line on the adapters, for users."""
    return (
      f'{self.method} of rank {self.rank}, scale {self.scale:g}, '
      f'{self.target_modules}'
    )


@dataclasses.dataclass(frozen=True)
class Adapters:
  """A `LoraConfig` resolved against the dense layers of one model."""

  config: LoraConfig
  module_paths: frozenset[str]


def resolve(config: LoraConfig, module_paths: Iterable[str]) -> Adapters:
  """Resolves `target_modules` against a model's dense layers.

  Args:
    config: the configuration.
    module_paths: paths of all dense layers of the model.

  Raises:
    ConfigError: a pattern matches no layer.
  """
  hits = tree_paths.match_paths(
    config.target_modules, module_paths, 'LoraConfig.target_modules'
  )
  return Adapters(config, frozenset(hits))


class LowRankUpdate(nn.Module):
  """Computes `(x·A)·B·scale`; a submodule of the dense layer it adapts.

  The update is in float32: the dense layer adds it before it rounds its output.

  Attributes:
    config: rank, scale and dropout.
    features: output width.
    kernel_axes: logical axes of the adapted kernel.
    dtype: dtype of the factors of the products.
  """

  config: LoraConfig
  features: int
  kernel_axes: tuple[str, str | None]
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[typing.Array, '*shape inputs'],
    kernel: Float[typing.Array, 'inputs {self.features}'],
    *,
    deterministic: bool,
  ) -> tuple[
    Float[jax.Array, '*shape {self.features}'],
    Float[jax.Array, ' {self.features}'] | None,
  ]:
    """Maps inputs to an update of a dense layer's output.

    Args:
      x: input of the dense layer.
      kernel: the dense layer's, which only DoRA reads.
      deterministic: whether dropout is off.

    Returns:
      The update, and DoRA's factors on `x·W` plus the update, else None.
    """
    config = self.config
    in_axis, out_axis = self.kernel_axes

    def variable(name, init, shape, axes):
      init = nn.with_logical_partitioning(init, axes)
      return self.variable(
        'lora', name, lambda: init(self.make_rng('lora'), shape, jnp.float32)
      ).value

    a = variable(
      'lora_a',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
      (x.shape[-1], config.rank),
      (in_axis, 'lora_rank'),
    )
    b = variable(
      'lora_b',
      nn.initializers.zeros,
      (config.rank, self.features),
      ('lora_rank', out_axis),
    )
    gains = None
    if config.dora:
      # Without its kernel; `dora.with_first_magnitudes` sets the first values.
      m = variable(
        dora_lib.MAGNITUDE, nn.initializers.ones, (self.features,), (out_axis,)
      )
      gains = dora_lib.gains(m, kernel, a, b, config.scale)
    x = nn.Dropout(config.dropout_rate)(x, deterministic=deterministic)
    hidden = products.rounded(
      products.product(x.astype(self.dtype), a.astype(self.dtype)), self.dtype
    )
    update = products.product(hidden, b.astype(self.dtype)) * config.scale
    return update, gains


def _adapted_kernels(
  params: typing.Params, lora: typing.Params, config: LoraConfig, sign: float
) -> dict[str, Any]:
  flat = tree_paths.flatten(params)
  adapters = tree_paths.flatten(lora)
  for path, a in adapters.items():
    if not path.endswith('/lora_a'):
      continue
    b = adapters[path.removesuffix('a') + 'b']
    kernel_path = path.removesuffix('lora/lora_a') + 'kernel'
    kernel = flat[kernel_path]
    # The leading `layers` axis of scanned layers is a batch axis here.
    update = jnp.matmul(
      jnp.asarray(a, jnp.float32),
      jnp.asarray(b, jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    merged = jnp.asarray(kernel, jnp.float32) + sign * config.scale * update
    if config.dora:
      magnitudes = adapters[path.removesuffix('lora_a') + dora_lib.MAGNITUDE]
      merged = dora_lib.normalized(merged, magnitudes)
    flat[kernel_path] = merged.astype(kernel.dtype)
  return tree_paths.unflatten(flat)


def merge_lora(
  params: typing.Params, lora: typing.Params, config: LoraConfig
) -> dict[str, Any]:
  """Returns `params` with `W + A·B·scale` for every adapter.

  DoRA then scales its columns. All is computed in float32, then cast to the
  kernel's dtype. The result is a plain backbone: apply it without the `lora`
  collection.
  """
  return _adapted_kernels(params, lora, config, 1.0)


def unmerge_lora(
  params: typing.Params, lora: typing.Params, config: LoraConfig
) -> dict[str, Any]:
  """Returns merged `params` with the same adapters subtracted.

  Raises:
    ConfigError: the adapters are DoRA's, whose merge loses the norms of `W`.
  """
  if config.dora:
    raise errors.ConfigError(
      'DoRA adapters cannot be subtracted again (LoraConfig.dora); keep the '
      'backbone.'
    )
  return _adapted_kernels(params, lora, config, -1.0)


def describe(
  adapters: Adapters, lora: Mapping[str, Any], params: Mapping[str, Any]
) -> str:
  """Returns a log line with the numbers of adapters and parameters."""
  added = tree_paths.count_parameters(lora)
  base = tree_paths.count_parameters(params)
  return (
    f'{adapters.config.method} rank {adapters.config.rank}, '
    f'scale {adapters.config.scale:g}: '
    f'{len(adapters.module_paths)} adapted module(s), {added:,} parameters '
    f'({added / (base + added):.3%} of {base + added:,}).'
  )
