"""The compiled programs of a rollout: sampling, and what is said of it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import length_buckets
from perlhf_jax.rl import rollout
from perlhf_jax.sampling import sampler
from perlhf_jax.training import compiled_step
from perlhf_jax.training import partitioning


class RolloutPrograms:
  """Samples and assesses batches of prompts on the mesh.

  Attributes:
    sample: compiled program of `rollout.sample`, which also gives the tokens
      of the longest response.
    assess: compiled program of `rollout.assess`.
  """

  def __init__(
    self,
    models: rollout.Models,
    mesh: partitioning.LogicalMesh,
    sampling: sampler.SamplingConfig,
    seed: int,
  ):
    """Prepares the programs; they compile when they are first called.

    Args:
      models: the modules.
      mesh: the mesh.
      sampling: how to sample.
      seed: of the randomness.
    """
    # Which distribution greedy decoding would have sampled is a convention:
    # the model's own.
    temperature = sampling.temperature or 1.0

    def sample(policy, frozen, number, batch):
      rng = jax.random.fold_in(jax.random.key(seed), number)
      rows = batch.get(feature_converters.EXAMPLE_ROWS)
      if rows is not None:
        keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)
      else:
        keys = jax.random.split(rng, len(batch['prompt_tokens']))
      samples = rollout.sample(models, policy, frozen, keys, batch, sampling)
      lengths = jnp.sum(samples['response_mask'], axis=-1)
      return samples, jnp.max(lengths)

    def assess(value, frozen, samples):
      return rollout.assess(models, value, frozen, samples, temperature)

    self.sample = compiled_step.CompiledStep(
      sample,
      mesh,
      name='sampling',
      out_shardings=(
        partitioning.batch_sharding(mesh),
        partitioning.replicated(mesh),
      ),
    )
    self.assess = compiled_step.CompiledStep(
      assess,
      mesh,
      name='assessment',
      out_shardings=partitioning.batch_sharding(mesh),
    )

  def __call__(
    self,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    number: Any,
    batch: typing.Batch,
  ) -> dict[str, jax.Array]:
    """Samples responses to a batch of prompts and assesses them.

    Args:
      trainable: `policy`, and perhaps `value`.
      frozen: see `rollout.Models`.
      number: int32 scalar; batches of other numbers get other randomness.
      batch: prompts. With EXAMPLE_ROWS, the randomness of a response depends on
        its prompt's row, and not on its place in the batch.

    Returns:
      What `rollout.assess` returns.
    """
    samples = self.draw(trainable, frozen, number, batch)
    return self.assess(trainable.get('value'), frozen, samples)

  def draw(
    self,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    number: Any,
    batch: typing.Batch,
  ) -> dict[str, jax.Array]:
    """Samples responses, and cuts padding that none of them needs.

    Every later pass costs by the length. The one number that this brings to
    the host is the length of the longest response.

    Args:
      trainable: `policy`.
      frozen: see `rollout.Models`.
      number: as in `__call__`.
      batch: prompts.

    Returns:
      What `rollout.sample` returns, cut to a bucket of lengths.
    """
    backbone = {'params': frozen['params']}
    number = jnp.asarray(number, jnp.int32)
    samples, longest = self.sample(trainable['policy'], backbone, number, batch)
    limit = samples['response_tokens'].shape[-1]
    length = length_buckets.halved_length(int(longest), limit)
    return rollout.trim(samples, length)

  @property
  def newly_compiled(self) -> bool:
    """Whether the last call compiled."""
    return self.sample.newly_compiled or self.assess.newly_compiled

  @property
  def memory_bytes(self) -> int:
    """What the larger of the programs needs on a device."""
    return max(self.sample.memory_bytes, self.assess.memory_bytes)
