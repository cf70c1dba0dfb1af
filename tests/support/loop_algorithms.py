"""Every algorithm once more, as loops over ragged lists of Python floats.

A batch is a list of prompts, a prompt a list of responses, a response a dict
of lists. There are no masks: what a mask hides is not there.
"""

import copy
import math

import numpy as np

from perlhf_jax.rl import algorithm

# [batch, responses]: two responses of one prompt are padding.
LENGTHS = np.array([[5, 1, 3], [2, 4, 5], [3, 0, 0]])
# The same with whole prompts as padding, for algorithms that compare.
GROUP_LENGTHS = np.array([[5, 1, 3], [2, 4, 5], [0, 0, 0], [1, 2, 0]])

# The length limit, which no response of the batch reaches.
LIMIT = 7


def random_batch(lengths, seed=0, has_values=True, garbage=np.nan):
  """Draws episodes, and outputs of models that have moved on since."""
  rng = np.random.default_rng(seed)
  mask = np.arange(lengths.max()) < lengths[..., None]

  def draw(scale, offset=0.0):
    x = offset + scale * rng.normal(size=mask.shape)
    return np.where(mask, x, garbage).astype(np.float32)

  logprobs, values = draw(0.5, -2.0), draw(1.0)
  scores = np.where(lengths > 0, rng.normal(size=lengths.shape), garbage)
  # One response of each prompt was cut off; padding did not end either.
  ended = (lengths > 0) & (np.arange(lengths.shape[1]) != 1)
  episodes = algorithm.Episodes(
    mask=mask,
    ended=ended,
    logprobs=logprobs,
    ref_logprobs=logprobs + draw(0.3),
    values=values if has_values else None,
    scores=scores.astype(np.float32),
    max_length=LIMIT,
  )
  # Far enough for some ratios and values to be clipped, on either side.
  outputs = algorithm.Outputs(
    logprobs=logprobs + draw(0.3),
    values=values + draw(0.3) if has_values else None,
  )
  return episodes, outputs


def ragged(episodes, outputs):
  """Turns arrays to lists."""
  prompts = []
  for b, row in enumerate(episodes.mask):
    prompts.append([])
    for r, mask in enumerate(row):
      length = int(mask.sum())
      if length == 0:
        continue
      response = {
        'score': float(episodes.scores[b, r]),
        'at': (b, r),
        'ended': bool(episodes.ended[b, r]),
      }
      for name, array in {
        'old': episodes.logprobs,
        'ref': episodes.ref_logprobs,
        'old_values': episodes.values,
        'new': outputs.logprobs,
        'new_values': outputs.values,
      }.items():
        if array is not None:
          response[name] = [float(x) for x in array[b, r, :length]]
      hold(response)
      prompts[-1].append(response)
  return prompts


def hold(response):
  """Fixes the ratios that are constants of the loss, as CISPO's weights."""
  response['held'] = list(response['new'])


def dense(prompts, name, shape):
  """Turns a list of each response to an array, 0 where there is none."""
  array = np.zeros(shape)
  for prompt in prompts:
    for response in prompt:
      for t, x in enumerate(response[name]):
        array[(*response['at'], t)] = x
  return array


def _mean(numbers):
  return sum(numbers) / len(numbers)


def _std(numbers):
  return math.sqrt(_mean([(x - _mean(numbers)) ** 2 for x in numbers]))


def _rewards(response, beta):
  rewards = [
    -beta * (old - ref)
    for old, ref in zip(response['old'], response['ref'], strict=True)
  ]
  rewards[-1] += (1 - beta) * response['score']
  return rewards


def _whiten(prompts):
  everything = [x for p in prompts for r in p for x in r['advantages']]
  for prompt in prompts:
    for response in prompt:
      response['advantages'] = [
        (x - _mean(everything)) / _std(everything)
        for x in response['advantages']
      ]


def reinforce_targets(prompts, beta, settings):
  for prompt in prompts:
    for response in prompt:
      rewards = _rewards(response, beta)
      response['returns'] = [sum(rewards[t:]) for t in range(len(rewards))]
      response['advantages'] = [
        z - v
        for z, v in zip(
          response['returns'], response['old_values'], strict=True
        )
      ]
  if settings.normalize_advantages:
    _whiten(prompts)


def rloo_targets(prompts, beta, settings):
  for prompt in prompts:
    totals = [sum(_rewards(response, beta)) for response in prompt]
    for i, response in enumerate(prompt):
      others = totals[:i] + totals[i + 1 :]
      advantage = totals[i] - _mean(others) if others else 0.0
      response['advantages'] = [advantage] * len(response['old'])


def grpo_targets(prompts, beta, settings):
  for prompt in prompts:
    scores = [response['score'] for response in prompt]
    for response in prompt:
      advantage = response['score'] - _mean(scores)
      if settings.normalize == 'group':
        advantage /= _std(scores) + settings.epsilon
      if settings.normalize == 'batch':
        everyone = [other['score'] for group in prompts for other in group]
        advantage /= _std(everyone) + settings.epsilon
      response['advantages'] = [advantage] * len(response['old'])
  if settings.normalize == 'whiten':
    _whiten(prompts)


def ppo_targets(prompts, beta, settings):
  for prompt in prompts:
    for response in prompt:
      rewards, values = _rewards(response, beta), response['old_values']
      length = len(rewards)
      response['advantages'] = []
      for t in range(length):
        # The definition: a decaying sum of all later one-step differences.
        advantage = 0.0
        for later in range(t, length):
          next_value = values[later + 1] if later + 1 < length else 0.0
          delta = rewards[later] + settings.gamma * next_value - values[later]
          decay = (settings.gamma * settings.gae_lambda) ** (later - t)
          advantage += decay * delta
        response['advantages'].append(advantage)
      response['returns'] = [
        a + v for a, v in zip(response['advantages'], values, strict=True)
      ]
  _whiten(prompts)


def _ratios(response, name, kind):
  """Ratios of the log-probabilities of a name to those of the rollout."""
  gaps = [x - y for x, y in zip(response[name], response['old'], strict=True)]
  if kind == 'sequence':
    gaps = [_mean(gaps)] * len(gaps)
  return [math.exp(gap) for gap in gaps]


def _surrogate(response, settings):
  """Losses of the tokens, and whether each is clipped."""
  low = settings.clip_ratio
  high = low if settings.clip_ratio_high is None else settings.clip_ratio_high
  kind = getattr(settings, 'ratio', 'token')
  losses, clipped = [], []
  if getattr(settings, 'surrogate', 'clip') == 'cispo':
    for t, ratio in enumerate(_ratios(response, 'held', kind)):
      weight = min(max(ratio, 1 - low), 1 + high)
      losses.append(-weight * response['advantages'][t] * response['new'][t])
      clipped.append(float(weight != ratio))
    return losses, clipped
  for t, ratio in enumerate(_ratios(response, 'new', kind)):
    advantage = response['advantages'][t]
    held = min(max(ratio, 1 - low), 1 + high)
    losses.append(-min(ratio * advantage, held * advantage))
    too_far = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    clipped.append(float(too_far and advantage != 0))
  return losses, clipped


def _value_losses(response, settings):
  losses = []
  for t, v in enumerate(response['new_values']):
    z = response['returns'][t]
    loss = (z - v) ** 2
    clip = getattr(settings, 'value_clip', None)
    if clip is not None:
      old = response['old_values'][t]
      held = min(max(v, old - clip), old + clip)
      loss = max(loss, (z - held) ** 2)
    losses.append(loss)
  return losses


def _log_losses(response):
  return [
    -new * a
    for new, a in zip(response['new'], response['advantages'], strict=True)
  ]


def _deviations(response):
  return [abs(ratio - 1) for ratio in _ratios(response, 'new', 'token')]


def _divergences(response, estimator):
  kl = []
  for new, ref in zip(response['new'], response['ref'], strict=True):
    x = ref - new
    kl.append(x * x / 2 if estimator == 'k2' else math.exp(x) - 1 - x)
  return kl


def _add_up(prompts, settings, tokens_of):
  """Sums of losses and metrics, and what to divide them by.

  Args:
    prompts: the batch.
    settings: an algorithm.
    tokens_of: from a response to {name: number of each token}; a name that ends
      with `_loss` is a loss, the others are metrics.
  """
  sums, weight = {}, 0
  for prompt in prompts:
    for response in prompt:
      if settings.mask_truncated and not response['ended']:
        continue
      for name, tokens in tokens_of(response).items():
        added = {
          'sum': sum(tokens) if name.endswith('_loss') else _mean(tokens),
          'token': sum(tokens),
          'sequence': _mean(tokens),
          'constant': sum(tokens) / LIMIT
          if name.endswith('_loss')
          else _mean(tokens),
        }
        sums[name] = sums.get(name, 0.0) + added[settings.aggregation]
      weight += len(response['new']) if settings.aggregation == 'token' else 1
  return sums, weight


def reinforce_loss(prompts, beta, settings):
  sums, weight = _add_up(
    prompts,
    settings,
    lambda response: {
      'policy_loss': _log_losses(response),
      'value_loss': _value_losses(response, settings),
      'ratio_deviation': _deviations(response),
    },
  )
  loss = sums['policy_loss'] + settings.value_coefficient * sums['value_loss']
  return loss, weight, sums


def rloo_loss(prompts, beta, settings):
  sums, weight = _add_up(
    prompts,
    settings,
    lambda response: {
      'policy_loss': _log_losses(response),
      'ratio_deviation': _deviations(response),
    },
  )
  return sums['policy_loss'], weight, sums


def grpo_loss(prompts, beta, settings):
  def tokens(response):
    losses, clipped = _surrogate(response, settings)
    return {
      'policy_loss': losses,
      'clip_fraction': clipped,
      'kl_loss': _divergences(response, settings.kl_estimator),
      'ratio_deviation': _deviations(response),
    }

  sums, weight = _add_up(prompts, settings, tokens)
  loss = (1 - beta) * sums['policy_loss'] + beta * sums['kl_loss']
  return loss, weight, sums


def ppo_loss(prompts, beta, settings):
  def tokens(response):
    losses, clipped = _surrogate(response, settings)
    return {
      'policy_loss': losses,
      'clip_fraction': clipped,
      'value_loss': _value_losses(response, settings),
      'ratio_deviation': _deviations(response),
    }

  sums, weight = _add_up(prompts, settings, tokens)
  loss = sums['policy_loss'] + settings.value_coefficient * sums['value_loss']
  return loss, weight, sums


def gradient(loss, prompts, name, beta, settings, step=1e-6):
  """Central differences with respect to one list of every response."""
  prompts = copy.deepcopy(prompts)
  for prompt in prompts:
    for response in prompt:
      response['gradient'] = []
      for t, x in enumerate(response[name]):
        both = []
        for sign in 1, -1:
          response[name][t] = x + sign * step
          both.append(loss(prompts, beta, settings)[0])
        response[name][t] = x
        response['gradient'].append((both[0] - both[1]) / (2 * step))
  return prompts
