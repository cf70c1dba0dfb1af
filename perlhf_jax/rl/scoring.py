"""Scores of samples, of reward models and of Python functions."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import reward_functions
from perlhf_jax.rl import rewards
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
    time_limit: seconds that a call of a function may take; None for any time.
  """

  reduce: str
  model_weight: float
  functions: Sequence[tuple[Callable[..., Any], float]]
  decode: Decode
  mesh: partitioning.LogicalMesh
  time_limit: float | None = None

  def __call__(self, samples: experience_lib.Experience) -> jax.Array:
    """Returns scores `[batch, responses]` of samples on the mesh.

    Functions are called on every host with its own rows, and never see the
    rows that only fill up a batch. Hosts that share rows each score them, so
    that a function has to give the same for the same.

    Raises:
      DataError: a function failed, on this host or on another.
      PreemptedError: SIGTERM came while a function was at work; likewise.
    """
    total = None
    if samples.model_scores is not None:
      total = self.model_weight * rewards.combine(
        samples.model_scores, self.reduce
      )
    if self.functions:
      error = scores = None
      try:
        scores = self._call_functions(samples)
      except (errors.DataError, errors.PreemptedError) as e:
        error = e
      multihost.raise_together(error)
      scores = placement.shard_rows(scores, self.mesh)
      total = scores if total is None else total + scores
    if total is None:
      shape = samples.response_tokens.shape[:2]
      sharding = partitioning.batch_sharding(self.mesh)
      total = jnp.zeros(shape, jnp.float32, device=sharding)
    return total

  def _call_functions(self, samples) -> np.ndarray:
    """Returns the functions' weighted sum, float32 `[rows, responses]`."""
    prompts, responses = texts(samples, self.decode, placement.local_rows)
    is_example = placement.local_rows(samples.example_mask)
    num_responses = samples.response_tokens.shape[1]
    total = np.zeros(is_example.size * num_responses, np.float32)
    rows = np.flatnonzero(np.repeat(is_example, num_responses))
    if not rows.size:
      return total.reshape(-1, num_responses)
    prompts = [prompts[row] for row in rows]
    responses = [responses[row] for row in rows]
    for function, weight in self.functions:
      scores = reward_functions.call(
        function, prompts, responses, time_limit=self.time_limit
      )
      total[rows] += np.float32(weight) * scores
    return total.reshape(-1, num_responses)


def texts(
  samples: experience_lib.Experience,
  decode: Decode,
  read: Callable[[jax.Array], np.ndarray] = placement.to_host,
) -> tuple[list[str], list[str]]:
  """Returns the prompt and the response of every row, as text.

  Args:
    samples: of `step.sample`.
    decode: makes text.
    read: brings an array to the host: `placement.to_host` the rows of all
      hosts, `placement.local_rows` this host's.
  """
  prompt_tokens, prompt_mask, response_tokens, response_mask = map(
    read,
    (
      samples.prompts.tokens,
      samples.prompts.mask,
      samples.response_tokens,
      samples.response_mask,
    ),
  )
  prompts, responses = [], []
  for row, tokens in enumerate(response_tokens):
    prompt = decode(prompt_tokens[row][prompt_mask[row]])
    for response, mask in zip(tokens, response_mask[row], strict=True):
      prompts.append(prompt)
      responses.append(decode(response[mask]))
  return prompts, responses
