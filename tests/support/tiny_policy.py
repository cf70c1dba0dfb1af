"""A policy of which every response can be listed.

There are three tokens, EOS the second of them; a response has two at most. The
state is the token before, so a policy is a 3 x 3 table of logits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.rl import algorithm

EOS = 1
# [responses, length]
TOKENS = np.array([[1, 0], *([a, b] for a in (0, 2) for b in range(3))])
MASK = np.array([[True, token != EOS] for token, _ in TOKENS])
STATES = np.array([[EOS, token] for token, _ in TOKENS])
ENDED = (TOKENS == EOS).any(axis=1)
NUM_RESPONSES = len(TOKENS)

RNG = np.random.default_rng(5)
LOGITS = jnp.array(RNG.normal(size=(3, 3)), jnp.float32)
REF_LOGITS = jnp.array(RNG.normal(size=(3, 3)), jnp.float32)
SCORES = jnp.array(RNG.normal(size=NUM_RESPONSES), jnp.float32)
# Of each state.
VALUES = jnp.array(RNG.normal(size=3), jnp.float32)


def logprobs(logits):
  """float32 [responses, length], of all tokens, padding too."""
  return jax.nn.log_softmax(logits)[STATES, TOKENS]


def probabilities(logits):
  """float32 [responses]; they add up to 1."""
  return jnp.exp(jnp.sum(jnp.where(MASK, logprobs(logits), 0), axis=-1))


def kl(logits, ref_logits=REF_LOGITS):
  """The exact KL between the distributions over responses."""
  p, q = probabilities(logits), probabilities(ref_logits)
  return jnp.sum(p * jnp.log(p / q))


def expected_score(logits, scores=SCORES):
  return jnp.sum(probabilities(logits) * scores)


def episodes(picked, scores=SCORES, has_values=True):
  """One prompt whose responses are those numbered."""
  picked = jnp.array(picked)
  return algorithm.Episodes(
    mask=jnp.array(MASK)[picked][None],
    ended=jnp.array(ENDED)[picked][None],
    logprobs=logprobs(LOGITS)[picked][None],
    ref_logprobs=logprobs(REF_LOGITS)[picked][None],
    values=VALUES[STATES][picked][None] if has_values else None,
    scores=scores[picked][None],
    max_length=2,
  )


def expected_gradient(method, groups, kl_beta, scores=SCORES):
  """The mean gradient of the loss over all draws of a group of responses.

  Args:
    method: the algorithm.
    groups: every group that can be drawn, as numbers of responses.
    kl_beta: β.
    scores: of each response.
  """
  has_values = method.needs_value

  def loss(logits, picked):
    batch = episodes(picked, scores, has_values)
    outputs = algorithm.Outputs(
      logprobs=logprobs(logits)[picked][None], values=batch.values
    )
    targets = method.targets(batch, kl_beta)
    result = method.loss(outputs, batch, targets, kl_beta)
    return result.loss_sum / result.weight_sum

  @jax.jit
  def mean(logits):
    picked = jnp.array(groups)
    chances = jnp.prod(probabilities(LOGITS)[picked], axis=-1)
    return chances @ jax.vmap(loss, (None, 0))(logits, picked)

  return jax.grad(mean)(LOGITS)
