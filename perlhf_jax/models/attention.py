"""Multi-head attention and T5's relative position bias."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from perlhf_jax.core import typing
from perlhf_jax.models import attend
from perlhf_jax.models import kv_cache
from perlhf_jax.models import layers
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config

# Finite, so that a row without a valid key gives a uniform softmax, not NaN.
MASKED_LOGIT = -1e10


def mask_to_bias(
  mask: Bool[typing.Array, '*shape'],
) -> Float[jax.Array, '*shape']:
  """Returns 0 where a bool `mask` is True and `MASKED_LOGIT` elsewhere."""
  return jnp.where(mask, 0.0, MASKED_LOGIT).astype(jnp.float32)


def relative_position_bucket(
  relative_position: Int[np.ndarray, '*shape'],
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, '*shape']:
  """Maps key position minus query position to a bucket.

  Half of the buckets are exact distances; the others grow logarithmically up
  to `max_distance`, beyond which all distances share the last one (Raffel et
  al. 2020, arXiv:1910.10683, section 2.1).

  Args:
    relative_position: int, of any shape.
    bidirectional: whether keys after the query have buckets of their own.
    num_buckets: number of buckets.
    max_distance: where the last bucket begins.

  Returns:
    int32 of the same shape, in [0, num_buckets).
  """
  bucket = np.zeros_like(relative_position)
  distance = -relative_position
  if bidirectional:
    num_buckets //= 2
    bucket = bucket + (distance < 0) * num_buckets
    distance = np.abs(distance)
  else:
    distance = np.maximum(distance, 0)
  max_exact = num_buckets // 2
  # float32, as in every published T5: float64 would move some boundaries.
  log_distance = np.log(
    np.maximum(distance, 1).astype(np.float32) / max_exact
  ) / np.float32(np.log(max_distance / max_exact))
  log_bucket = max_exact + (log_distance * (num_buckets - max_exact)).astype(
    np.int32
  )
  log_bucket = np.minimum(log_bucket, num_buckets - 1)
  bucket = bucket + np.where(distance < max_exact, distance, log_bucket)
  return bucket.astype(np.int32)


class RelativePositionBias(nn.Module):
  """A learned bias per head and bucket of relative distance.

  The module returns the bias by distance, and `attend` expands it to pairs of
  query and key: for a long prompt all pairs would be larger than the states.

  Attributes:
    config: the model's configuration.
    bidirectional: True in the encoder, False in the decoder.
  """

  config: t5_config.T5Config
  bidirectional: bool

  @nn.compact
  def __call__(
    self,
    query_length: int,
    key_length: int,
    position: kv_cache.CachePosition | None = None,
  ) -> Float[jax.Array, 'heads {query_length}+{key_length}-1']:
    """Returns the bias for each distance of a key from a query, in order.

    Args:
      query_length: number of queries, the first of them at position 0.
      key_length: number of keys.
      position: position of the single query, when decoding token by token.

    Returns:
      float32 `[heads, query_length + key_length - 1]`, ordered by key position
      minus query position, ascending; with `position`, the row of that query.
    """
    config = self.config
    table = self.param(
      'rel_embedding',
      nn.with_logical_partitioning(
        nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
        ('heads', 'relpos_buckets'),
      ),
      (config.num_heads, config.relative_attention_num_buckets),
      jnp.float32,
    )
    # When decoding, cover all queries; the row of one query is a slice.
    queries = query_length if position is None else key_length
    relative = np.arange(1 - queries, key_length, dtype=np.int32)
    buckets = relative_position_bucket(
      relative,
      bidirectional=self.bidirectional,
      num_buckets=config.relative_attention_num_buckets,
      max_distance=config.relative_attention_max_distance,
    )
    if position is not None:
      buckets = jax.lax.dynamic_slice_in_dim(
        buckets, key_length - 1 - position.index, key_length
      )
    return jnp.take(jnp.asarray(table, jnp.float32), buckets, axis=1)


class Attention(nn.Module):
  """T5's multi-head attention: the initializer replaces logit scaling.

  Attributes:
    config: the model's configuration.
    adapters: resolved LoRA adapters, or None.
  """

  config: t5_config.T5Config
  adapters: lora_lib.Adapters | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[typing.Array, 'rows query_length embed'],
    memory: Float[typing.Array, 'batch memory_length embed'],
    *,
    mask_bias: Float[typing.Array, '_ 1 _ key_length'],
    distance_bias: Float[typing.Array, 'heads distances'] | None = None,
    position: kv_cache.CachePosition | None = None,
    keep_memory: bool = False,
    deterministic: bool,
  ) -> Float[jax.Array, 'rows query_length embed']:
    """Attends from `x` to `memory`.

    Args:
      x: queries, `[batch * responses, query_length, embed]`. Several responses
        of a prompt are joined on the query axis, so that the prompt's keys and
        values are computed and held once.
      memory: `[batch, memory_length, embed]`, gives the keys and values;
        key_length = memory_length unless `position` is given.
      mask_bias: float32, broadcastable to
        `[batch, heads, query_length, key_length]`.
      distance_bias: output of `RelativePositionBias`, or None.
      position: position of the single token of `memory`, when decoding token
        by token. Its key and value are appended to the cache, and `x` attends
        to the whole cache, key_length = position.length.
      keep_memory: whether the first call computes the keys and values of
        `memory` and keeps them in the cache.
      deterministic: whether dropout is off.

    Returns:
      `[batch * responses, query_length, embed]`.
    """
    config = self.config
    shape = x.shape
    x = x.reshape(memory.shape[0], -1, shape[-1])
    width = config.num_heads * config.head_dim

    def project(name, inputs, init=layers.DENSE_INIT):
      y = layers.Dense(
        features=width,
        kernel_axes=('embed', 'joined_kv'),
        dtype=config.compute_dtype,
        kernel_init=init,
        adapters=self.adapters,
        name=name,
      )(inputs, deterministic=deterministic)
      y = y.reshape(*y.shape[:2], config.num_heads, config.head_dim)
      return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))

    # T5 has no 1/sqrt(head_dim) at run time; the query's initializer has it.
    query_init = nn.initializers.variance_scaling(
      1.0 / config.head_dim, 'fan_in', 'truncated_normal'
    )
    query = project('query', x, query_init)

    def cached(name):
      if keep_memory:
        return kv_cache.keep(self, name, lambda: project(name, memory))
      y = project(name, memory)
      if position is not None:
        y = kv_cache.append(self, name, y, position)
      return y

    key, value = cached('key'), cached('value')

    keys_last = keep_memory or position is not None
    y = attend.attend(
      query,
      key,
      value,
      self._make_dropout(
        query, key.shape[3 if keys_last else 1], deterministic=deterministic
      ),
      mask_bias=mask_bias,
      distance_bias=distance_bias,
      keys_last=keys_last,
      block=config.attention_block,
    )
    y = y.reshape(*y.shape[:2], width)
    y = layers.Dense(
      features=config.emb_dim,
      kernel_axes=('joined_kv', 'embed'),
      dtype=config.compute_dtype,
      adapters=self.adapters,
      name='out',
    )(y, deterministic=deterministic)
    return y.reshape(shape)

  def _make_dropout(self, query, key_length, *, deterministic):
    """Returns dropout of weights [batch, heads, query_length, key_length]."""
    rate = self.config.dropout_rate
    if deterministic or not rate:
      return lambda weights: weights
    shape = (query.shape[0], self.config.num_heads, 1, key_length)
    # One mask for all queries, as in T5X: they drop the same keys.
    kept = nn.Dropout(rate)(jnp.ones(shape), deterministic=False) != 0
    return lambda weights: jnp.where(kept, weights / (1 - rate), 0)
