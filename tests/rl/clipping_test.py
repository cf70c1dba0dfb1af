import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.rl import clipping


def _one(x):
  return np.full((1, 1, 1), x, np.float32)


@hypothesis.given(st.floats(-1, 1, width=32), st.floats(-3, 3, width=32))
def test_policy_loss_is_never_below_the_unclipped_one(distance, advantage):
  result = clipping.policy_loss(_one(distance), _one(0.0), _one(advantage), 0.2)
  ratio = math.exp(distance)
  held = min(max(ratio, 0.8), 1.2)
  free, held = -ratio * advantage, -held * advantage
  loss = float(result.loss[0, 0, 0])
  assert loss == pytest.approx(max(free, held), rel=1e-5, abs=1e-6)
  if 0.81 < ratio < 1.19:
    assert result.is_clipped[0, 0, 0] == 0
  if abs(free - held) > 1e-5:
    assert result.is_clipped[0, 0, 0] == (held > free)


@pytest.mark.parametrize(
  'value, old, target, clip, expected',
  [
    (1.0, 0.0, 2.0, None, 1.0),
    (1.0, 0.0, 2.0, 0.2, 1.8**2),  # Held at 0.2, which is worse.
    (1.0, 0.0, -1.0, 0.2, 4.0),  # Held at 0.2, which would be better.
    (0.1, 0.0, 2.0, 0.2, 1.9**2),  # Not held.
  ],
)
def test_value_loss_takes_the_worse(value, old, target, clip, expected):
  loss = clipping.value_loss(_one(value), _one(old), _one(target), clip)
  assert float(loss[0, 0, 0]) == pytest.approx(expected, rel=1e-5)
