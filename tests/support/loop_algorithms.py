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


def random_batch(lengths, seed=0, has_values=True, garbage=np.nan):
  """Draws episodes, and outputs of models that have moved on since."""
  rng = np.random.default_rng(seed)
  mask = np.arange(lengths.max()) < lengths[..., None]

  def draw(scale, offset=0.0):
    x = offset + scale * rng.normal(size=mask.shape)
    return np.where(mask, x, garbage).astype(np.float32)

  logprobs, values = draw(0.5, -2.0), draw(1.0)
  scores = np.where(lengths > 0, rng.normal(size=lengths.shape), garbage)
  episodes = algorithm.Episodes(
    mask=mask,
    logprobs=logprobs,
    ref_logprobs=logprobs + draw(0.3),
    values=values if has_values else None,
    scores=scores.astype(np.float32),
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
      response = {'score': float(episodes.scores[b, r]), 'at': (b, r)}
      for name, array in {
        'old': episodes.logprobs,
        'ref': episodes.ref_logprobs,
        'old_values': episodes.values,
        'new': outputs.logprobs,
        'new_values': outputs.values,
      }.items():
        if array is not None:
          response[name] = [float(x) for x in array[b, r, :length]]
      prompts[-1].append(response)
  return prompts


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
      if settings.scale_by_std:
        advantage /= _std(scores) + settings.epsilon
      response['advantages'] = [advantage] * len(response['old'])


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


def _clipped(ratio, advantage, clip):
  held = min(max(ratio, 1 - clip), 1 + clip)
  return -min(ratio * advantage, held * advantage)


def _token_metrics(response, settings):
  """Lists of what each token contributes to each metric."""
  metrics = {'ratio_deviation': [], 'log': [], 'clipped': [], 'k3': []}
  metrics.update(clip_fraction=[], value=[])
  for t, new in enumerate(response['new']):
    ratio = math.exp(new - response['old'][t])
    advantage = response['advantages'][t]
    metrics['ratio_deviation'].append(abs(ratio - 1))
    metrics['log'].append(-new * advantage)
    clip = getattr(settings, 'clip_ratio', 0.2)
    metrics['clipped'].append(_clipped(ratio, advantage, clip))
    too_far = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
    metrics['clip_fraction'].append(float(too_far and advantage != 0))
    x = response['ref'][t] - new
    metrics['k3'].append(math.exp(x) - 1 - x)
    if 'returns' in response:
      z, v = response['returns'][t], response['new_values'][t]
      loss = (z - v) ** 2
      value_clip = getattr(settings, 'value_clip', None)
      if value_clip is not None:
        old = response['old_values'][t]
        held = min(max(v, old - value_clip), old + value_clip)
        loss = max(loss, (z - held) ** 2)
      metrics['value'].append(loss)
  return metrics


def reinforce_loss(prompts, beta, settings):
  sums = {'policy_loss': 0.0, 'value_loss': 0.0, 'ratio_deviation': 0.0}
  weight = 0
  for prompt in prompts:
    for response in prompt:
      tokens = _token_metrics(response, settings)
      sums['policy_loss'] += sum(tokens['log'])
      sums['value_loss'] += sum(tokens['value'])
      sums['ratio_deviation'] += _mean(tokens['ratio_deviation'])
      weight += 1
  loss = sums['policy_loss'] + settings.value_coefficient * sums['value_loss']
  return loss, weight, sums


def rloo_loss(prompts, beta, settings):
  sums = {'policy_loss': 0.0, 'ratio_deviation': 0.0}
  weight = 0
  for prompt in prompts:
    for response in prompt:
      tokens = _token_metrics(response, settings)
      sums['policy_loss'] += sum(tokens['log'])
      sums['ratio_deviation'] += _mean(tokens['ratio_deviation'])
      weight += 1
  return sums['policy_loss'], weight, sums


def grpo_loss(prompts, beta, settings):
  names = {
    'policy_loss': 'clipped',
    'kl_loss': 'k3',
    'ratio_deviation': 'ratio_deviation',
    'clip_fraction': 'clip_fraction',
  }
  sums = dict.fromkeys(names, 0.0)
  loss = weight = 0
  for prompt in prompts:
    for response in prompt:
      tokens = _token_metrics(response, settings)
      for name, source in names.items():
        sums[name] += _mean(tokens[source])
      loss += (1 - beta) * _mean(tokens['clipped']) + beta * _mean(tokens['k3'])
      weight += 1
  return loss, weight, sums


def ppo_loss(prompts, beta, settings):
  names = {
    'policy_loss': 'clipped',
    'value_loss': 'value',
    'ratio_deviation': 'ratio_deviation',
    'clip_fraction': 'clip_fraction',
  }
  sums = dict.fromkeys(names, 0.0)
  weight = 0
  for prompt in prompts:
    for response in prompt:
      tokens = _token_metrics(response, settings)
      for name, source in names.items():
        sums[name] += sum(tokens[source])
      weight += len(response['new'])
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
