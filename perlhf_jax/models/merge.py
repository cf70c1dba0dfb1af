"""Merges adapters into their backbone and measures the difference."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import prompts
from perlhf_jax.models import t5


class MergeReport(NamedTuple):
  """What a merge changed.

  Attributes:
    max_logit_difference: largest |Δlogit| between merged and unmerged model.
    lost_updates: share of the kernel entries that adapters change which the
      merge left unchanged, because the kernel's dtype is too coarse. Adapters
      change entries with nonzero A·B; for DoRA, those that a merge in float32
      changes.
  """

  max_logit_difference: float
  lost_updates: float


def merge_and_check(
  model: t5.T5,
  params: typing.Params,
  lora: typing.Params,
  *,
  tolerance: float,
  rng: jax.Array | None = None,
  shardings: typing.PyTree | None = None,
) -> tuple[dict, MergeReport]:
  """Merges adapters and compares logits before and after.

  Args:
    model: the adapted model.
    params: parameters of its backbone.
    lora: its adapters.
    tolerance: the largest |Δlogit| to accept.
    rng: draws the random tokens on which the logits are compared.
    shardings: shardings of the merged `params`; None lets XLA choose.

  Returns:
    The merged `params`, to be applied without adapters, and the report.

  Raises:
    CheckpointError: the difference exceeds the tolerance.
  """
  config = model.adapters.config
  merged = jax.jit(
    lambda params, lora: lora_lib.merge_lora(params, lora, config),
    out_shardings=shardings,
  )(params, lora)
  rng = jax.random.key(0) if rng is None else rng
  bare = encoder_decoder.make_model(model.config)
  prompt, response = _random_inputs(model.config, rng)

  def compare(params, lora, merged):
    unmerged = model.apply({'params': params, 'lora': lora}, prompt, response)
    difference = jnp.abs(
      unmerged - bare.apply({'params': merged}, prompt, response)
    )
    # NaN must be refused, but XLA's maximum on a CPU may drop it.
    return jnp.where(
      jnp.all(jnp.isfinite(difference)), jnp.max(difference), jnp.nan
    )

  difference = float(jax.jit(compare)(params, lora, merged))
  if not difference <= tolerance:
    raise errors.CheckpointError(
      f'Merging the adapters changes logits by up to {difference:.3g}, more '
      f'than the tolerance {tolerance:g}. Keep them unmerged, or hold the '
      'backbone in float32.'
    )
  lost = _lost_updates(params, merged, lora, config)
  return merged, MergeReport(difference, lost)


def _random_inputs(config, rng):
  """Draws prompts, with an image if the model reads images, and responses."""
  tokens, response = jax.random.randint(rng, (2, 4, 32), 2, config.vocab_size)
  prompt = prompts.of_tokens(tokens)
  if (side := config.image_size) is not None:
    pixels = jax.random.bits(rng, (4, 1, side, side, 3), jnp.uint8)
    prompt = prompt.replace(images=pixels, image_mask=jnp.ones((4, 1), bool))
  return prompt, response


def _lost_updates(params, merged, lora, config) -> float:
  """Returns the share of updated entries whose update rounding removed."""
  lost = total = 0

  def visit(params, merged, lora):
    nonlocal lost, total
    if 'lora_a' in lora.get('lora', {}):
      swallowed, updated = _count_lost(
        params['kernel'], merged['kernel'], lora, config
      )
      lost += int(swallowed)
      total += int(updated)
      return
    for name, child in lora.items():
      visit(params[name], merged[name], child)

  visit(params, merged, lora)
  return lost / total if total else 0.0


@functools.partial(jax.jit, static_argnums=3)
def _count_lost(kernel, merged, lora, config):
  if config.dora:
    exact = kernel.astype(jnp.float32)
    moved = lora_lib.merge_lora({'kernel': exact}, lora, config)['kernel']
    has_update = moved != exact
  else:
    matrices = lora['lora']
    has_update = jnp.matmul(matrices['lora_a'], matrices['lora_b']) != 0
  unchanged = (kernel == merged) & has_update
  return jnp.sum(unchanged), jnp.sum(has_update)
