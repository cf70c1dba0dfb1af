import functools
import importlib.util
import json

from perlhf_jax.core import code_digest

_SOURCE = """
LIMIT = 3

def helper(x):
  return x + LIMIT

def reward(prompts, responses):
  return [helper(len(each)) for each in responses]

class Reward:
  def __call__(self, prompts, responses):
    return reward(prompts, responses)
"""


def _load(tmp_path, source):
  path = tmp_path / 'my_rewards.py'
  path.write_text(source)
  spec = importlib.util.spec_from_file_location('my_rewards', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_comments_and_layout_do_not_count(tmp_path):
  before = code_digest.digest(_load(tmp_path, _SOURCE).reward)
  assert len(before) == 16 and int(before, 16)
  other = '# Mine.\n' + _SOURCE.replace('= 3', '=   3  # Three.')
  assert code_digest.digest(_load(tmp_path, other).reward) == before


def test_what_a_function_calls_counts(tmp_path):
  before = code_digest.digest(_load(tmp_path, _SOURCE).reward)
  for old, new in (('x + LIMIT', 'x - LIMIT'), ('LIMIT = 3', 'LIMIT = 4')):
    module = _load(tmp_path, _SOURCE.replace(old, new))
    assert code_digest.digest(module.reward) != before


def test_partials_and_objects_are_known_by_their_module(tmp_path):
  module = _load(tmp_path, _SOURCE)
  wanted = code_digest.digest(module.reward)
  assert code_digest.digest(functools.partial(module.reward, 'a')) == wanted


def test_code_that_is_not_the_users_has_none():
  assert code_digest.digest(len) is None
  assert code_digest.digest(json.dumps) is None
  assert code_digest.digest(code_digest.digest) is None
  scope = {}
  exec('def typed_in(): pass', scope)
  assert code_digest.digest(scope['typed_in']) is None
