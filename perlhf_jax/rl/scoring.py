"""Scores samples with reward models and Python functions."""

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
  """Combines the scores of reward models and Python functions.

  Attributes:
    reduce: how to combine the scores of several reward models: `mean`, or
      `min`, which is harder to exploit.
    model_weight: factor on the combined score of the models.
    functions: Python functions of prompts and responses, each with its weight.
    decode: converts tokens to text for the functions.
    mesh: the mesh of the samples.
    time_limit: seconds that a call of a function may take; None for no limit.
  """

  reduce: str
  model_weight: float
  functions: Sequence[tuple[Callable[..., Any], float]]
  decode: Decode
  mesh: partitioning.LogicalMesh
  time_limit: float | None = None

  def __call__(self, samples: experience_lib.Experience) -> jax.Array:
    """Returns scores `[batch, responses]` of samples on the mesh.

    Every host calls the functions with its own rows, without rows that are
    padding of the batch. Hosts that hold the same rows each score them, so a
    function must be deterministic.

    Raises:
      DataError: a function failed, on this host or on another.
      PreemptedError: SIGTERM came while a function ran, on this host or on
        another.
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
  """Returns every response and its prompt as text: (prompts, responses).

  Args:
    samples: the result of `step.sample`.
    decode: converts tokens to text.
    read: copies an array to the host: `placement.to_host` for the rows of all
      hosts, `placement.local_rows` for this host's rows.
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
