import gin
import pytest

from perlhf_jax.core import operative_config


def test_config_text_is_known_before_anything_is_called():
  gin.clear_config()
  assert operative_config.config_text().strip() == ''
  gin.parse_config('STEPS = 3\nNAME = "a"')
  text = operative_config.config_text()
  gin.clear_config()
  gin.parse_config(text)
  assert gin.query_parameter('NAME/macro.value') == 'a'
  assert operative_config.config_text() == text
  gin.clear_config()


@pytest.fixture
def scaled(tmp_path, monkeypatch):
  """A module with `scaled(prompts, responses, scale)`, known to gin."""
  (tmp_path / 'scaled_rewards.py').write_text(
    'def scaled(prompts, responses, scale): ...\n'
    'def give(function): return function\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  gin.clear_config()
  gin.parse_config(
    'from __gin__ import dynamic_registration\n'
    'import scaled_rewards\n'
    'scaled_rewards.give.function = @scaled_rewards.scaled\n'
    'scoped/scaled_rewards.give.function = @half/scaled_rewards.scaled\n'
    'half/scaled_rewards.scaled.scale = 0.5\n'
  )
  import scaled_rewards

  yield gin.get_configurable(scaled_rewards.give)
  gin.clear_config()


def test_arguments_that_gin_binds_are_known(scaled):
  assert operative_config.bound_arguments(len) == set()
  assert operative_config.bound_arguments(scaled()) == set()
  gin.bind_parameter('scaled_rewards.scaled.scale', 2)
  assert operative_config.bound_arguments(scaled()) == {'scale'}
  with gin.config_scope('scoped'):
    function = scaled()
  assert 'scale' in operative_config.bound_arguments(function)


_BEFORE = """
from __gin__ import dynamic_registration
from some import place

LEARNING_RATE = 0.001
SIZES = {'inputs': 32, 'targets': 17}
MODEL = @place.Model()

place.train.rate = %LEARNING_RATE
place.train.part = None
eval/place.Data.split = 'test'
"""


def test_comments_order_and_spelling_are_no_change():
  after = """
# Written by hand.
eval/place.Data.split = "test"
place.train:
  part = None
  rate = %LEARNING_RATE
MODEL = @place.Model()
SIZES = {'targets': 17, 'inputs': 32}
LEARNING_RATE = 1e-3
"""
  assert operative_config.changes(_BEFORE, after) == {}


def test_each_change_is_named():
  after = (
    _BEFORE.replace('0.001', '0.01')
    .replace('@place.Model()', '@place.Model')
    .replace('%LEARNING_RATE', '%OTHER_RATE')
    .replace('place.train.part = None\n', '')
  )
  assert operative_config.changes(_BEFORE, after + 'OTHER_RATE = 1\n') == {
    'LEARNING_RATE': '0.001 -> 0.01',
    'MODEL': '@place.Model() -> @place.Model',
    'OTHER_RATE': 'not set -> 1',
    'place.train.part': 'None -> not set',
    'place.train.rate': '%LEARNING_RATE -> %OTHER_RATE',
  }


def test_macros_are_plain_values_or_text():
  more = """
RATE = %LEARNING_RATE
NAME = 'rm'
WANDB = True
ALPHA = None
UNKNOWN = %NOWHERE
SHAPE = (-1, 1)
"""
  assert operative_config.macros(_BEFORE + more) == {
    'LEARNING_RATE': 0.001,
    'SIZES': "{'inputs': 32, 'targets': 17}",
    'MODEL': '@place.Model()',
    'RATE': 0.001,
    'NAME': 'rm',
    'WANDB': True,
    'ALPHA': None,
    'UNKNOWN': '%NOWHERE',
    'SHAPE': '(-1, 1)',
  }
