import functools
import json

import gin
import numpy as np
import pytest

from perlhf_jax.checkpoints import run_settings
from perlhf_jax.core import code_digest
from perlhf_jax.rl import kl_controller
from perlhf_jax.training import optimizers


@pytest.fixture(autouse=True)
def no_configuration():
  gin.clear_config()
  yield
  gin.clear_config()


def reward(prompts, responses, factor=1.0):
  return [factor * len(each) for each in responses]


class MyAlgorithm:
  def __init__(self):
    self.clip = 0.25
    self.names = ('a', 'b')
    self._cache = object()


class MyReward:
  def __init__(self, factor):
    self.factor = factor

  def __call__(self, prompts, responses):
    return reward(prompts, responses, self.factor)


def _describe(value):
  described = run_settings.describe(value)
  assert json.loads(json.dumps(described)) == described
  return described


@pytest.mark.parametrize(
  ('value', 'wanted'),
  [
    (None, None),
    (True, True),
    (3, 3),
    (0.5, 0.5),
    ('a', 'a'),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7),
    ((1, (2.0, 'b')), [1, [2.0, 'b']]),
    ({'a': (1,)}, {'a': [1]}),
  ],
)
def test_plain_values(value, wanted):
  described = _describe(value)
  assert described == wanted and type(described) is type(wanted)


def test_a_dataclass_is_described_with_its_defaults():
  described = _describe(optimizers.Optimizer(learning_rate=3e-4))
  assert described['class'] == 'Optimizer'
  assert described['learning_rate'] == 3e-4
  assert 'code' not in described
  assert described['b1'] == 0.9 and described['clip_norm'] == 1.0
  controller = kl_controller.AdaptiveKl(target=6)
  assert _describe(controller)['target'] == 6


def test_an_algorithm_of_ones_own_is_described_by_its_attributes():
  assert _describe(MyAlgorithm()) == {
    'class': 'MyAlgorithm',
    'code': code_digest.digest(MyAlgorithm),
    'clip': 0.25,
    'names': ['a', 'b'],
  }


def test_functions_are_known_by_name_code_and_arguments():
  described = _describe(reward)
  assert described == {
    'function': f'{__name__}.reward',
    'code': code_digest.digest(reward),
    'bound': {},
  }
  assert described['code']
  bound = _describe(functools.partial(reward, factor=2.0))
  assert bound == {**described, 'bound': {'factor': 2.0}}
  one, two = (_describe(MyReward(factor)) for factor in (1.0, 2.0))
  assert one['function'] == f'{__name__}.MyReward'
  assert one != two and one['code'] == described['code']


def test_what_gin_binds_of_a_function_counts():
  configurable = gin.external_configurable(reward, module='my_rewards')
  gin.parse_config('my_rewards.reward.factor = 4.0')
  ((name, value),) = _describe(configurable)['bound'].items()
  assert name.endswith('reward.factor') and value == '4.0'


def test_what_gin_binds_in_a_scope_or_by_a_macro_counts():
  gin.external_configurable(reward, module=__name__)
  gin.parse_config(
    'FACTOR = 5.0\n'
    f'mine/{__name__}.reward.factor = %FACTOR\n'
    f'MINE = @mine/{__name__}.reward'
  )
  scoped = gin.query_parameter('%MINE').scoped_configurable_fn
  ((name, value),) = _describe(scoped)['bound'].items()
  assert name.startswith('mine/') and value == '5.0'
