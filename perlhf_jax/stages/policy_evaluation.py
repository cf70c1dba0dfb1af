"""Answers prompts with a policy: responses, scores, KL, lengths."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import input_pipeline
from perlhf_jax.objectives import kl as kl_lib
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import reward_functions
from perlhf_jax.rl import scoring as scoring_lib
from perlhf_jax.rl import step as step_lib
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement


def response_length(task_feature_lengths: Mapping[str, int]) -> int:
  """Returns the most tokens that a response may have.

  Raises:
    ConfigError: the length is missing or invalid.
  """
  length = task_feature_lengths.get('targets')
  if isinstance(length, int) and length > 0:
    return length
  raise errors.ConfigError(
    f"TASK_FEATURE_LENGTHS is {dict(task_feature_lengths)}: add 'targets', "
    'the maximum number of tokens of a response.'
  )


@dataclasses.dataclass(frozen=True)
class Answers:
  """Responses of a policy to the prompts of a data set, in its order.

  Responses to one prompt follow each other.

  Attributes:
    prompts: text, one per response.
    responses: text.
    references: right answers to each prompt, one list per response, or None
      where unknown.
    columns: float64 `[answers]` by name: `score` (if there are rewards),
      `kl_k1` and `kl_k3` (Σ k1 and Σ k3 in nats, if there is a reference),
      `response_length` in tokens, `truncated`, and `judge_score` (if there is
      a judge).
  """

  prompts: Sequence[str]
  responses: Sequence[str]
  references: Sequence[Sequence[str] | None]
  columns: Mapping[str, np.ndarray]

  def means(self) -> dict[str, float]:
    """Returns the mean of every column."""
    return {name: float(np.mean(x)) for name, x in self.columns.items()}

  def rows(self, limit: int) -> Iterator[dict[str, Any]]:
    """Yields the first answers as records."""
    for row in range(min(limit, len(self.responses))):
      references = self.references[row]
      yield {
        'prompt': self.prompts[row],
        'response': self.responses[row],
        **({} if references is None else {'references': references}),
        **{name: float(x[row]) for name, x in self.columns.items()},
      }


def answer(
  rollout: step_lib.Rollout,
  scoring: scoring_lib.Scoring | None,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  examples: examples_lib.Examples,
  *,
  batch_size: int,
  mesh: partitioning.LogicalMesh,
  judge: Callable[..., Any] | None = None,
  time_limit: float | None = None,
  decode: scoring_lib.Decode,
) -> Answers:
  """Samples responses to every prompt and assesses them.

  The random numbers depend only on the prompt's place in the data set, so that
  two policies get the same ones.

  Args:
    rollout: programs of the policy.
    scoring: scores responses; None to skip scores.
    trainable: `policy`; a `value` is not used.
    frozen: see `shared_backbone.Models`.
    examples: examples of any kind; their prompts are answered.
    batch_size: prompts per batch.
    mesh: the mesh.
    judge: a reward function that measures the true quality of responses.
    time_limit: seconds that a call of the judge may take; None for no limit.
    decode: converts tokens to text.

  Raises:
    DataError: a reward function or the judge failed.
    PreemptedError: SIGTERM came while one of them ran.
  """
  prompts, responses, rows = [], [], []
  collected: dict[str, list[np.ndarray]] = {}
  policy = {'policy': trainable['policy']}
  for batch in input_pipeline.eval_batches(examples.prompts(), batch_size):
    samples = rollout(policy, frozen, 0, placement.put_batch(batch, mesh))
    text = scoring_lib.texts(samples, decode)
    num_responses = samples.response_tokens.shape[1]
    valid, numbers = (
      np.repeat(batch[name], num_responses)
      for name in ('example_mask', feature_converters.EXAMPLE_ROWS)
    )
    for store, column in zip(
      (prompts, responses, rows), (*text, numbers), strict=True
    ):
      store += [t for t, v in zip(column, valid, strict=True) if v]
    columns = _columns(samples)
    if scoring is not None:
      columns['score'] = placement.to_host(scoring(samples)).reshape(-1)
    for name, column in columns.items():
      collected.setdefault(name, []).append(column[valid])
  order = np.argsort(rows, kind='stable')
  prompts, responses = ([x[i] for i in order] for x in (prompts, responses))
  columns = {
    name: np.concatenate(parts).astype(np.float64)[order]
    for name, parts in collected.items()
  }
  references = [examples.references_of(int(rows[i])) for i in order]
  if judge is not None:
    columns['judge_score'] = _judge(
      judge, prompts, responses, references, time_limit
    )
  return Answers(prompts, responses, references, columns)


def _columns(samples: experience_lib.Experience) -> dict[str, np.ndarray]:
  tokens, mask = map(
    placement.to_host, (samples.response_tokens, samples.response_mask)
  )
  ended = np.asarray(experience_lib.has_eos(tokens, mask))
  columns = {
    'response_length': mask.sum(axis=-1).reshape(-1),
    'truncated': 1.0 - ended.reshape(-1),
  }
  if samples.ref_logprobs is not None:
    logprobs, ref_logprobs = map(
      placement.to_host, (samples.logprobs, samples.ref_logprobs)
    )
    kl = {
      f'kl_{name}': np.asarray(
        kl_lib.token_kl(name, logprobs, ref_logprobs, mask), np.float64
      )
      for name in kl_lib.REPORTED
    }
    nats = {name: x.sum(axis=-1).reshape(-1) for name, x in kl.items()}
    columns = {**nats, **columns}
  return columns


def _judge(judge, prompts, responses, references, time_limit) -> np.ndarray:
  """Judges the answers, a share on each host; returns all scores, float64."""
  scores, error = np.zeros(0, np.float32), None
  hosts, host = jax.process_count(), jax.process_index()
  share = -(-len(responses) // hosts)
  mine = slice(host * share, (host + 1) * share)
  try:
    if responses[mine]:
      scores = reward_functions.call(
        judge,
        prompts[mine],
        responses[mine],
        references[mine],
        time_limit=time_limit,
      )
  except (errors.DataError, errors.PreemptedError) as e:
    error = e
  multihost.raise_together(error)
  return placement.gather_numbers(scores, share)[: len(responses)]
