"""Compares our losses and gradients with verl's own functions.

  python tests/oracles/check_algorithms.py /tmp/algorithms.json

`verl` may be installed without its dependencies: its functions of arrays need
torch, numpy and omegaconf alone, and its other imports are replaced by mocks.

Two conventions differ, and are converted here. verl divides by the standard
deviation of a sample (n - 1), we by that of the population (n). verl adds the
KL to a whole policy loss, we weigh the two by 1 - β and β, as the paper does.
"""

import collections
import importlib.util
import json
import math
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch

_MOCKED = (
  'tensordict',
  'transformers',
  'verl',
  'verl.trainer',
  'verl.trainer.config',
  'verl.utils',
  'verl.utils.device',
  'verl.utils.import_utils',
  'verl.workers',
)
_MODES = {
  'sum': 'seq-mean-token-sum',
  'token': 'token-mean',
  'sequence': 'seq-mean-token-mean',
  'constant': 'seq-mean-token-sum-norm',
}
_TOLERANCE = 2e-6


class _Config(types.SimpleNamespace):
  """What verl's losses read of a configuration."""

  def get(self, name, default=None):
    return getattr(self, name, default)


def _load(name: str, path: str, mocks):
  """Loads one file of verl, without the packages around it."""
  root = next(
    pathlib.Path(folder) / 'verl'
    for folder in sys.path
    if (pathlib.Path(folder) / 'verl' / path).exists()
  )
  spec = importlib.util.spec_from_file_location(name, root / path)
  module = importlib.util.module_from_spec(spec)
  with mock.patch.dict(sys.modules, {**mocks, name: module}):
    spec.loader.exec_module(module)
  return module


def _verl():
  """Loads verl's algorithms."""
  mocks = {name: mock.MagicMock() for name in _MOCKED}
  # The decorator of deprecated functions, and the classes of isinstance.
  mocks['verl.utils.import_utils'].deprecated = lambda _: lambda f: f
  mocks['verl.workers.config'] = types.SimpleNamespace(ActorConfig=_Config)
  mocks['verl.trainer.config'].AlgoConfig = type('AlgoConfig', (), {})
  functional = 'verl.utils.torch_functional'
  mocks[functional] = _load(functional, 'utils/torch_functional.py', mocks)
  mocks['verl.utils'].torch_functional = mocks[functional]
  mocks['verl'].utils = mocks['verl.utils']
  return _load('verl_algorithms', 'trainer/ppo/core_algos.py', mocks)


def _tensor(numbers, shape):
  return torch.tensor(np.reshape(numbers, shape), dtype=torch.float64)


def _advantages(verl, world, arrays, groups):
  """Returns advantages and value targets by verl."""
  settings, beta = world['settings'], world['beta']
  mask, count = arrays['mask'], groups.shape[0]
  last = mask.sum(-1).long() - 1
  scores = torch.zeros_like(mask)
  scores[torch.arange(count), last] = arrays['scores']
  kl = verl.kl_penalty(arrays['old'], arrays['ref'], 'k1') * mask
  rewards = (1 - beta) * scores - beta * kl
  tokens = mask.sum().item()
  of_tokens = math.sqrt(tokens / (tokens - 1))
  if world['kind'] == 'Ppo':
    advantages, returns = verl.compute_gae_advantage_return(
      rewards, arrays['old_values'], mask, settings['gamma'],
      settings['gae_lambda'],
    )  # fmt: skip
    return advantages * of_tokens, returns
  if world['kind'] == 'Rloo':
    return verl.compute_rloo_outcome_advantage(rewards, mask, groups)[0], None
  if settings['normalize'] == 'whiten':
    own = verl.compute_reinforce_plus_plus_baseline_outcome_advantage
    return own(scores, mask, groups)[0] * of_tokens, None
  of_groups = math.sqrt(4 / 3)
  scaled = settings['normalize'] == 'group'
  advantages, _ = verl.compute_grpo_outcome_advantage(
    scores, mask, groups, settings['epsilon'] * of_groups, scaled
  )
  return advantages * (of_groups if scaled else 1.0), None


def _theirs(verl, world):
  """Returns verl's loss, and its gradients of log-probabilities and values."""
  settings, episodes = world['settings'], world['episodes']
  shape = np.shape(episodes['mask'])
  flat = -1, shape[-1]
  arrays = {
    'mask': _tensor(episodes['mask'], flat),
    'old': _tensor(episodes['logprobs'], flat),
    'ref': _tensor(episodes['ref_logprobs'], flat),
    'scores': _tensor(episodes['scores'], -1),
  }
  new = _tensor(world['logprobs'], flat).requires_grad_()
  if world['values'] is not None:
    arrays['old_values'] = _tensor(episodes['values'], flat)
    values = _tensor(world['values'], flat).requires_grad_()
  groups = np.repeat(np.arange(shape[0]), shape[1])
  advantages, returns = _advantages(verl, world, arrays, groups)
  mask = arrays['mask']
  if settings['mask_truncated']:
    mask = mask * _tensor(episodes['ended'], -1)[:, None]
  mode = _MODES[settings['aggregation']]
  limit = {'loss_scale_factor': world['max_length']}
  low = settings.get('clip_ratio')
  if low is None:
    # RLOO has one update per rollout, and no ratio.
    plain = verl.agg_loss(-advantages * new, mask, mode, **limit)
    plain.backward()
    return plain.item(), new.grad, None
  config = _Config(
    clip_ratio=low,
    clip_ratio_low=low,
    clip_ratio_high=settings['clip_ratio_high'],
    clip_ratio_c=1e9,  # verl's third bound, which we do not have.
    global_batch_info=limit,
  )
  kind = 'vanilla'
  if settings.get('ratio') == 'sequence':
    kind = 'gspo'
  if settings.get('surrogate') == 'cispo':
    kind = 'cispo'
  loss, _ = verl.get_policy_loss_fn(kind)(
    arrays['old'], new, advantages, mask, mode, config
  )
  if returns is None:
    kl = verl.kl_penalty(new, arrays['ref'], settings['kl_estimator'])
    kl_loss = verl.agg_loss(kl, mask, mode, **limit)
    loss = (1 - world['beta']) * loss + world['beta'] * kl_loss
  else:
    value_loss, _ = verl.compute_value_loss(
      values, returns, arrays['old_values'], mask, settings['value_clip'], mode
    )
    # Half of the square is verl's own; the coefficient is ours.
    loss = loss + 2 * settings['value_coefficient'] * value_loss
  loss.backward()
  return loss.item(), new.grad, None if returns is None else values.grad


def _distance(ours, theirs) -> float:
  ours = np.reshape(np.asarray(ours, np.float64), -1)
  theirs = np.reshape(np.asarray(theirs, np.float64), -1)
  return float(np.max(np.abs(ours - theirs) / (1.0 + np.abs(theirs))))


def main() -> None:
  """Prints the largest distance of each algorithm; ends with 1 if too large."""
  verl = _verl()
  worst = collections.defaultdict(float)
  for world in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    loss, logprobs_gradient, values_gradient = _theirs(verl, world)
    ours = world['ours']
    distances = [
      _distance(ours['loss'], loss),
      _distance(ours['logprobs_gradient'], logprobs_gradient),
    ]
    if values_gradient is not None:
      distances.append(_distance(ours['values_gradient'], values_gradient))
    worst[world['name']] = max(worst[world['name']], *distances)
  for name, distance in worst.items():
    print(f'{name:16} {distance:.1e}')
  if max(worst.values()) > _TOLERANCE:
    sys.exit(f'A distance is above {_TOLERANCE:.0e}.')


if __name__ == '__main__':
  main()
