"""Writes generated rollouts, and our losses and gradients of them.

  PYTHONPATH=.:tests/support python tests/oracles/write_algorithms.py \
    /tmp/algorithms.json

`check_algorithms.py` compares them with the functions of verl.
"""

import dataclasses
import json
import pathlib
import sys

import gin
import jax
import loop_algorithms
import numpy as np

from perlhf_jax.rl import grpo
from perlhf_jax.rl import ppo
from perlhf_jax.rl import rloo

_WORLDS = 10
_BETA = 0.1
_FIELDS = ('mask', 'ended', 'logprobs', 'ref_logprobs', 'values', 'scores')


def _settings():
  """Yields names and algorithms: of the gin files, and of single settings."""
  for name in 'grpo', 'dr_grpo', 'gspo', 'cispo', 'reinforce_pp', 'rloo', 'ppo':
    with gin.unlock_config():
      gin.clear_config()
      gin.parse_config(f"include 'gin/rl/{name}.gin'\n")
      yield name, gin.query_parameter('%ALGORITHM').scoped_configurable_fn()
  yield 'clip_higher', grpo.Grpo(clip_ratio_high=0.28, aggregation='token')
  yield 'mask_truncated', grpo.Grpo(mask_truncated=True, aggregation='token')
  yield 'wide_gspo', grpo.Grpo(ratio='sequence', clip_ratio=0.1)
  yield 'rloo_masked', rloo.Rloo(mask_truncated=True)
  yield 'ppo_clip_higher', ppo.Ppo(clip_ratio_high=0.28)


def _ours(algorithm, episodes, outputs):
  targets = algorithm.targets(episodes, _BETA)

  def loss(outputs):
    result = algorithm.loss(outputs, episodes, targets, _BETA)
    return result.loss_sum / result.weight_sum

  value, gradient = jax.value_and_grad(loss)(outputs)
  return {
    'loss': float(value),
    'logprobs_gradient': np.asarray(gradient.logprobs).tolist(),
    'values_gradient': None
    if gradient.values is None
    else np.asarray(gradient.values).tolist(),
  }


def _world(name, algorithm, seed):
  rng = np.random.default_rng(1000 + seed)
  lengths = rng.integers(1, 7, (int(rng.integers(1, 6)), 4))
  episodes, outputs = loop_algorithms.random_batch(
    lengths, seed, algorithm.needs_value, garbage=0.0
  )
  return {
    'name': name,
    'kind': type(algorithm).__name__,
    'settings': dataclasses.asdict(algorithm),
    'beta': _BETA,
    'max_length': loop_algorithms.LIMIT,
    'episodes': {
      key: None if value is None else np.asarray(value).tolist()
      for key in _FIELDS
      for value in [getattr(episodes, key)]
    },
    'logprobs': outputs.logprobs.tolist(),
    'values': None if outputs.values is None else outputs.values.tolist(),
    'ours': _ours(algorithm, episodes, outputs),
  }


if __name__ == '__main__':
  worlds = [
    _world(name, algorithm, seed)
    for name, algorithm in _settings()
    for seed in range(_WORLDS)
  ]
  pathlib.Path(sys.argv[1]).write_text(json.dumps(worlds))
