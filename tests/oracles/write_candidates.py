"""Writes scores of generated candidates, and our figures of them.

  PYTHONPATH=. python tests/oracles/write_candidates.py /tmp/candidates.json

`check_candidates.py` compares the figures with those of RewardBench 2 and
RM-Bench.
"""

import json
import pathlib
import sys

import numpy as np

from perlhf_jax.core import strict_json
from perlhf_jax.stages import candidates

_WORLDS = 20
_DOMAINS = ('chat', 'math', 'code', 'safety-refuse', 'safety-response')


def _best_of(rng):
  """Lines of best-of-N, as the data set of RewardBench 2 has them."""
  for subset in ('Factuality', 'Math'):
    for _ in range(rng.integers(2, 30)):
      # Few values, so that ties are common.
      yield subset, None, 1, rng.integers(0, 4, 4).astype(float)
  for number in range(rng.integers(2, 15)):
    for role in ('ref', 'tied'):
      num_correct = 1 if role == 'ref' else int(rng.integers(2, 6))
      scores = rng.normal(size=num_correct + int(rng.integers(1, 6)))
      scores[:num_correct] += rng.uniform(0, 4)
      yield 'Ties', f'{role}:{number}', num_correct, scores


def _world(seed):
  rng = np.random.default_rng(seed)
  lines, scores = [], []
  for subset, name, num_correct, numbers in _best_of(rng):
    line = {'prompt': 'p', 'responses': ['r'] * numbers.size, 'id': name}
    lines.append({**line, 'num_correct': num_correct, 'subset': subset})
    scores.append(numbers)
  styles, style_scores = [], []
  for domain in _DOMAINS:
    for _ in range(rng.integers(1, 20)):
      line = {'prompt': 'p', 'chosen': ['r'] * 3, 'rejected': ['r'] * 3}
      styles.append({**line, 'domain': domain})
      style_scores.append(rng.integers(0, 5, 6).astype(float))
  best_of = candidates.BestOf('generated', lines).measure(scores)
  style = candidates.Styles('generated', styles).measure(style_scores)
  return {
    'best_of': [
      {**line, 'scores': numbers.tolist()}
      for line, numbers in zip(lines, scores, strict=True)
    ],
    'styles': [
      {
        'domain': line['domain'],
        'score_chosen': numbers[:3].tolist(),
        'score_rejected': numbers[3:].tolist(),
      }
      for line, numbers in zip(styles, style_scores, strict=True)
    ],
    'ours': strict_json.null_nonfinite({'best_of': best_of, 'styles': style}),
  }


if __name__ == '__main__':
  worlds = [_world(seed) for seed in range(_WORLDS)]
  pathlib.Path(sys.argv[1]).write_text(json.dumps(worlds))
