"""Computes one number per token from logits, in chunks of positions.

Logits, `[tokens, vocabulary]` in float32, are the largest array of a step with
long responses or a large vocabulary. Losses need one number per token, not the
logits. If the logits of a batch are large, this module computes them for one
chunk of positions at a time and does not keep them.

The backward pass depends on what is trained. With a frozen output layer, the
forward pass also computes the gradient of each token's number with respect to
its hidden state, `[tokens, embed]`, while it has the logits; the backward pass
only scales it. With a trained output layer, or trained adapters on it, the
backward pass computes the logits again.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import flax.linen as nn
import jax
from jax import custom_derivatives
import jax.numpy as jnp
from jaxtyping import Float

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.models import device_share
from perlhf_jax.models import dora
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

# Size of the logits of one chunk on one device: small compared with any model,
# and large enough for efficient matrix products.
CHUNK_BYTES = 128 * 2**20
_FLOAT32 = 4

# (logits, *tokens) -> (one float32 number per token, other arrays per token)
Read = Callable[..., tuple[jax.Array, Any]]

_AXES = {
  'kernel': ('embed', 'vocab'),
  'embedding': ('vocab', 'embed'),
  'lora_a': ('embed', 'lora_rank'),
  'lora_b': ('lora_rank', 'vocab'),
  dora.MAGNITUDE: ('vocab',),
}


def per_token(
  model: t5.T5,
  variables: Mapping[str, Any],
  hidden: Float[jax.Array, 'rows length embed'],
  read: Read,
  *tokens: typing.Array,
) -> tuple[Float[jax.Array, 'rows length'], Any]:
  """Applies a function of logits to every position.

  Args:
    model: the model, adapted or bare.
    variables: its `params`, and `lora` if it is adapted.
    hidden: final hidden states of the decoder.
    read: `(logits, *tokens) -> (number, rest)` for any number of positions,
      each independent of the others: `number` is float32 `[rows, positions]`,
      `rest` a tree of such arrays, which get no gradient. It must not close
      over arrays.
    *tokens: `[rows, length]`, split like the hidden states; they get no
      gradient.

  Returns:
    `number` and `rest` of all positions.
  """

  def compute(layer, hidden, tokens):
    layer = tree_paths.unflatten(layer)
    logits = model.apply(layer, hidden, method='logits')
    number, rest = read(logits, *tokens)
    return number, jax.lax.stop_gradient(rest)

  layer = _variables(model, variables)
  rows, length, _ = hidden.shape
  size = chunk_length(length, position_bytes(model.config, rows))
  if size == length:
    return compute(layer, hidden, tokens)
  count = math.ceil(length / size)

  def split(x):
    widths = [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths).reshape(rows, count, size, *x.shape[2:])
    axes = (None, 'batch', *(None,) * (x.ndim - 2))
    return nn.with_logical_constraint(jnp.moveaxis(x, 1, 0), axes)

  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :length]

  chunks = jax.tree.map(split, (hidden, tokens))
  # Gather the layer but for the vocabulary, and cast it, before the loop:
  # otherwise every iteration would gather it in float32.
  layer = {
    path: _constrain(path, _as_read(path, x, model.config), whole=True)
    for path, x in layer.items()
  }
  return jax.tree.map(join, _in_chunks(compute)(layer, *chunks))


def chunk_length(length: int, position_bytes: int) -> int:
  """Returns the number of positions per chunk, at most `length`.

  Args:
    length: number of positions.
    position_bytes: bytes of the logits of one position on one device.
  """
  count = math.ceil(length * position_bytes / CHUNK_BYTES)
  return math.ceil(length / min(max(count, 1), length))


def position_bytes(config: t5_config.T5Config, rows: int) -> int:
  """Returns the bytes per device of the logits of one position of all rows."""
  shape = rows, config.vocab_size
  return _FLOAT32 * math.prod(
    device_share.device_share(shape, ('batch', 'vocab'))
  )


def _in_chunks(compute):
  """Returns a `compute` that loops over stacked chunks."""

  def whole(layer, hidden, tokens):
    return jax.lax.map(lambda chunk: compute(layer, *chunk), (hidden, tokens))

  def forward(layer, hidden, tokens):
    trained = {p: x.value for p, x in layer.items() if x.perturbed}
    frozen = {p: x.value for p, x in layer.items() if not x.perturbed}
    hidden, tokens = hidden.value, jax.tree.map(lambda x: x.value, tokens)
    if trained:
      result = whole({**trained, **frozen}, hidden, tokens)
      return result, (trained, frozen, hidden, tokens)

    def with_gradient(chunk):
      hidden, tokens = chunk
      number, pull, rest = jax.vjp(
        lambda hidden: compute(frozen, hidden, tokens), hidden, has_aux=True
      )
      # A token's number depends only on its own hidden state.
      return (number, rest), pull(jnp.ones_like(number))[0]

    result, gradient = jax.lax.map(with_gradient, (hidden, tokens))
    return result, gradient

  def backward(residuals, cotangents):
    cotangent, _ = cotangents
    if isinstance(cotangent, custom_derivatives.SymbolicZero):
      cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
    if not isinstance(residuals, tuple):
      scaled = residuals * cotangent[..., None]
      # A masked token may have an infinite gradient.
      scaled = jnp.where(cotangent[..., None] == 0, 0, scaled)
      return None, scaled.astype(residuals.dtype), None
    trained, frozen, *chunks = residuals

    def body(total, inputs):
      hidden, tokens, cotangent = inputs
      _, pull, _ = jax.vjp(
        lambda trained, hidden: compute({**trained, **frozen}, hidden, tokens),
        *(trained, hidden),
        has_aux=True,
      )
      gradients, gradient = pull(cotangent)
      total = {
        path: _constrain(path, x + gradients[path].astype(jnp.float32))
        for path, x in total.items()
      }
      return total, gradient

    zeros = {p: jnp.zeros(x.shape, jnp.float32) for p, x in trained.items()}
    zeros = {path: _constrain(path, x) for path, x in zeros.items()}
    total, gradient = jax.lax.scan(body, zeros, (*chunks, cotangent))
    total = {path: x.astype(trained[path].dtype) for path, x in total.items()}
    return {**total, **dict.fromkeys(frozen)}, gradient, None

  function = jax.custom_vjp(whole)
  function.defvjp(forward, backward, symbolic_zeros=True)
  return function


def _variables(model, variables) -> dict[str, Any]:
  """Returns the output layer's variables, by path."""
  tied = model.config.logits_via_embedding
  name = 'token_embedder' if tied else 'decoder/logits_dense'
  names = tuple(f'{kind}/{name}/' for kind in ('params', 'lora'))
  flat = tree_paths.flatten(variables)
  return {path: x for path, x in flat.items() if path.startswith(names)}


def _as_read(path, x, config):
  """Casts what the products read in the compute dtype."""
  if path.endswith(f'/{dora.MAGNITUDE}'):
    return x  # It scales float32 sums, and rounded it would change them all.
  return x.astype(config.compute_dtype)


def _constrain(path, x, *, whole=False):
  """Shards a variable like parameters; if `whole`, by vocabulary only."""
  axes = _AXES[path.split('/')[-1]]
  if whole:
    axes = tuple(axis if axis == 'vocab' else None for axis in axes)
  return nn.with_logical_constraint(x, axes)
