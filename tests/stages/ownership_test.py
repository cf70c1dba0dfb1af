"""Loaded weights are gone when the work begins, without a call by hand."""

import weakref

import pytest
import runs

from perlhf_jax.checkpoints import initial
from perlhf_jax.checkpoints import loading
from perlhf_jax.core import tree_paths
from perlhf_jax.rl import roles
from perlhf_jax.stages import evaluate
from perlhf_jax.stages import evaluate_policy
from perlhf_jax.stages import generate
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import score
from perlhf_jax.training import train_loop

# What is trained or held is then a copy of every loaded kernel.
_BFLOAT16 = '--gin.T5Config.dtype="bfloat16"'
_CAST = ('/kernel', '/embedding')
_ROWS = [{'prompt': 'todo: gym', 'response': 'gym'}]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Folders `sft` and `rm` (of SFT, with LoRA) of tiny runs."""
  root = tmp_path_factory.mktemp('ownership')
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft', _BFLOAT16, steps=1)
  for tuning in ('attention', 'none'):
    runs.train(
      *('train_reward', tuning, root / f'rm_{tuning}', 'demo_rm', _BFLOAT16),
      start=root / 'sft',
      steps=1,
    )
  return root


@pytest.fixture
def loaded(monkeypatch):
  """Weak references to all that is loaded, by the function that loads it."""
  alive = []

  def watch(module, name):
    function = getattr(module, name)

    def load(*args, **kwargs):
      model = function(*args, **kwargs)
      # An adapter on what another holds has none.
      params = tree_paths.flatten(model.params or {})
      cast = [leaf for path, leaf in params.items() if path.endswith(_CAST)]
      alive.extend(weakref.ref(each) for each in (model, *cast))
      return model

    monkeypatch.setattr(module, name, load)

  watch(loading, 'load')
  watch(initial, 'load_initial')
  watch(roles, 'load_reward_model')
  return alive


@pytest.fixture
def begun(monkeypatch, loaded):
  """How many of what was loaded are there when the work begins."""
  counts = []

  def watch(module, name):
    function = getattr(module, name)

    def begin(*args, **kwargs):
      counts.append(sum(each() is not None for each in loaded))
      return function(*args, **kwargs)

    monkeypatch.setattr(module, name, begin)

  watch(train_loop, 'train')
  watch(score, 'score_examples')
  watch(generate, 'decode_prompts')
  watch(reward_scoring, 'collect')
  watch(policy_evaluation, 'answer')
  return counts


@pytest.mark.parametrize(
  ('command', 'task', 'tuning'),
  [('train_sft', 'demo_sft', 'none'), ('train_reward', 'demo_rm', 'attention')],
)
def test_of_training(root, loaded, begun, tmp_path, command, task, tuning):
  start = root / 'sft'
  more = (_BFLOAT16, '--gin.EVAL_EXAMPLES=8')
  runs.train(command, tuning, tmp_path, task, *more, start=start, steps=1)
  assert loaded and begun[0] == 0


def test_of_a_policy(root, loaded, begun, tmp_path):
  rewards = [str(root / f'rm_{each}') for each in ('attention', 'none')]
  runs.train(
    'train_policy',
    'attention',
    tmp_path / 'policy',
    'demo_prompts',
    _BFLOAT16,
    '--gin_file=gin/rl/reinforce.gin',
    f'--gin.REWARD_CHECKPOINT={rewards}',
    '--gin.EVAL_EXAMPLES=8',
    start=root / 'sft',
    steps=1,
  )
  assert loaded and begun[0] == 0
  loaded.clear()
  begun.clear()
  evaluate.evaluate(
    checkpoint=str(tmp_path / 'policy'),
    split='validation',
    max_examples=8,
    batch_size=8,
    policy=evaluate_policy.PolicyEvaluation(
      baseline_checkpoint=str(root / 'sft')
    ),
  )
  assert loaded and begun == [0, 0]


def test_of_scoring_and_generating(root, loaded, begun, tmp_path):
  runs.score(root / 'sft', _ROWS, tmp_path)
  runs.score(root / 'rm_attention', _ROWS, tmp_path)
  runs.generate(root / 'sft', _ROWS, tmp_path, '--max_length=2')
  assert loaded and begun == [0, 0, 0]
