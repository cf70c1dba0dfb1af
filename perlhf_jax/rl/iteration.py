"""One step of reinforcement learning: rollout, rewards, returns, update."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import typing
from perlhf_jax.rl import learner as learner_lib
from perlhf_jax.rl import programs
from perlhf_jax.rl import reward_functions
from perlhf_jax.rl import rewards
from perlhf_jax.rl import state as state_lib
from perlhf_jax.training import compiled_step
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# Tokens [length] of a prompt or a response -> text.
Decode = Callable[[np.ndarray], str]


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Where the scores of a response come from.

  Attributes:
    reduce: how the scores of several reward models become one: `mean`, or
      `min`, which is harder to exploit.
    model_weight: factor on it.
    functions: Python functions of prompts and responses, each with its weight.
    decode: makes text for them.
    mesh: where samples lie.
  """

  reduce: str
  model_weight: float
  functions: Sequence[tuple[Callable[..., Any], float]]
  decode: Decode
  mesh: partitioning.LogicalMesh

  def __call__(self, samples: typing.Batch) -> jax.Array:
    """Returns scores `[batch, responses]` of samples on the mesh.

    Functions are called on every host with its own rows, and never see the
    rows that only fill up a batch. Hosts that share rows each score them, so
    that a function has to give the same for the same.

    Raises:
      DataError: a function failed, on this host or on another.
    """
    total = None
    if 'model_scores' in samples:
      total = self.model_weight * rewards.combine(
        samples['model_scores'], self.reduce
      )
    if self.functions:
      error = scores = None
      try:
        scores = self._call_functions(samples)
      except errors.DataError as e:
        error = e
      multihost.raise_together(error)
      scores = placement.shard_rows(scores, self.mesh)
      total = scores if total is None else total + scores
    if total is None:
      shape = samples['response_tokens'].shape[:2]
      sharding = partitioning.batch_sharding(self.mesh)
      total = jnp.zeros(shape, jnp.float32, device=sharding)
    return total

  def _call_functions(self, samples) -> np.ndarray:
    """Returns the functions' weighted sum, float32 `[rows, responses]`."""
    prompts, responses = texts(samples, self.decode, placement.local_rows)
    is_example = placement.local_rows(samples['example_mask'])
    num_responses = samples['response_tokens'].shape[1]
    total = np.zeros(is_example.size * num_responses, np.float32)
    rows = np.flatnonzero(np.repeat(is_example, num_responses))
    if not rows.size:
      return total.reshape(-1, num_responses)
    prompts = [prompts[row] for row in rows]
    responses = [responses[row] for row in rows]
    for function, weight in self.functions:
      scores = reward_functions.call(function, prompts, responses)
      total[rows] += np.float32(weight) * scores
    return total.reshape(-1, num_responses)


def texts(
  samples: typing.Batch,
  decode: Decode,
  read: Callable[[jax.Array], np.ndarray] = placement.to_host,
) -> tuple[list[str], list[str]]:
  """Returns the prompt and the response of every row, as text.

  Args:
    samples: of `rollout.sample`.
    decode: makes text.
    read: brings an array to the host: `placement.to_host` the rows of all
      hosts, `placement.local_rows` this host's.
  """
  host = {
    name: read(samples[name])
    for name in (
      'prompt_tokens',
      'prompt_mask',
      'response_tokens',
      'response_mask',
    )
  }
  prompts, responses = [], []
  for row, tokens in enumerate(host['response_tokens']):
    prompt = decode(host['prompt_tokens'][row][host['prompt_mask'][row]])
    for response, mask in zip(tokens, host['response_mask'][row], strict=True):
      prompts.append(prompt)
      responses.append(decode(response[mask]))
  return prompts, responses


class Iteration:
  """Makes a step of reinforcement learning in three compiled programs.

  Attributes:
    rollout: samples and assesses.
    scoring: scores samples.
    learn: compiled program of `Learner.learn`.
  """

  def __init__(
    self,
    rollout: programs.RolloutPrograms,
    scoring: Scoring,
    learner: learner_lib.Learner,
    mesh: partitioning.LogicalMesh,
    state_shardings: state_lib.PolicyState,
  ):
    """Prepares the programs.

    Args:
      rollout: samples and assesses.
      scoring: scores samples.
      learner: updates.
      mesh: the mesh.
      state_shardings: of every leaf of the state.
    """
    self.rollout = rollout
    self.scoring = scoring
    self.learn = compiled_step.CompiledStep(
      learner.learn,
      mesh,
      name='the update',
      donate_argnums=(0,),
      out_shardings=(state_shardings, partitioning.replicated(mesh)),
    )

  def __call__(
    self,
    state: state_lib.PolicyState,
    frozen: Mapping[str, Any],
    batch: typing.Batch,
  ) -> tuple[state_lib.PolicyState, dict[str, jax.Array]]:
    """Makes one step.

    Args:
      state: before.
      frozen: see `rollout.Models`.
      batch: prompts.

    Raises:
      DataError: a reward function failed; the state is as it was.
    """
    samples = self.rollout(state.trainable, frozen, state.step, batch)
    samples['scores'] = self.scoring(samples)
    return self.learn(state, {'params': frozen['params']}, samples)

  @property
  def newly_compiled(self) -> bool:
    """Whether the last call compiled."""
    return self.rollout.newly_compiled or self.learn.newly_compiled

  @property
  def memory_bytes(self) -> int:
    """What the largest of the programs needs on a device."""
    return max(self.rollout.memory_bytes, self.learn.memory_bytes)
