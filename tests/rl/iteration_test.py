import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_roles

from perlhf_jax.core import errors
from perlhf_jax.rl import iteration
from perlhf_jax.rl import learner as learner_lib
from perlhf_jax.rl import ppo
from perlhf_jax.rl import rewards
from perlhf_jax.rl import state as state_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

PROMPTS = np.array([[7, 8, 1], [9, 1, 0]], np.int32)
PROMPT_MASK = np.array([[True, True, True], [True, True, False]])
RESPONSES = np.array([[[5, 1, 0], [6, 6, 6]], [[1, 0, 0], [4, 0, 1]]], np.int32)
RESPONSE_MASK = np.array(
  [
    [[True, True, False], [True, True, True]],
    [[True, False, False], [True, True, True]],
  ]
)


def _samples(example_mask=(True, True), **more):
  return {
    'prompt_tokens': jnp.array(PROMPTS),
    'prompt_mask': jnp.array(PROMPT_MASK),
    'response_tokens': jnp.array(RESPONSES),
    'response_mask': jnp.array(RESPONSE_MASK),
    'example_mask': jnp.array(example_mask),
    **more,
  }


def _scoring(functions=(), reduce='mean', model_weight=1.0):
  return iteration.Scoring(
    reduce,
    model_weight,
    functions,
    tiny_roles.decode,
    partitioning.make_mesh(),
  )


def test_texts_are_rows_with_the_prompt_before_each_response():
  prompts, responses = iteration.texts(_samples(), tiny_roles.decode)
  assert prompts == ['7 8 1', '7 8 1', '9 1', '9 1']
  # A token 0 in the middle of a response is part of it.
  assert responses == ['5 1', '6 6 6', '1', '4 0 1']


MODEL_SCORES = np.array(
  [[[1.0, 2.0], [3.0, 4.0]], [[5.0, -2.0], [3.0, 0.0]]], np.float32
)


@pytest.mark.parametrize(
  ('reduce', 'wanted'),
  [
    ('mean', [[3.0, 0.0], [3.0, 2.0]]),
    ('min', [[1.0, -2.0], [3.0, 0.0]]),
  ],
)
def test_an_ensemble_is_one_score(reduce, wanted):
  samples = _samples(model_scores=jnp.array(np.moveaxis(MODEL_SCORES, 0, -1)))
  np.testing.assert_array_equal(_scoring(reduce=reduce)(samples), wanted)
  weighted = _scoring(reduce=reduce, model_weight=-0.5)(samples)
  np.testing.assert_array_equal(weighted, -0.5 * np.array(wanted))


def _num_tokens(prompts, responses):
  del prompts
  return [len(response.split()) for response in responses]


def _first_of_prompt(prompts, responses):
  assert len(prompts) == len(responses)
  return [int(prompt.split()[0]) for prompt in prompts]


def test_functions_and_models_are_added_with_their_weights():
  functions = ((_num_tokens, 0.5), (_first_of_prompt, 10.0))
  lengths = np.array([[2, 3], [1, 3]])
  firsts = np.array([[7, 7], [9, 9]])
  alone = _scoring(functions)(_samples())
  np.testing.assert_allclose(alone, 0.5 * lengths + 10 * firsts)
  samples = _samples(model_scores=jnp.array(np.moveaxis(MODEL_SCORES, 0, -1)))
  both = _scoring(functions, 'min', 2.0)(samples)
  np.testing.assert_allclose(
    both, 2 * MODEL_SCORES.min(axis=0) + 0.5 * lengths + 10 * firsts
  )


def test_functions_do_not_see_the_padding_of_a_batch():
  seen = []

  def function(prompts, responses):
    seen.append((prompts, responses))
    return [1.0] * len(prompts)

  scores = _scoring(((function, 3.0),))(_samples(example_mask=(False, True)))
  assert seen == [(['9 1', '9 1'], ['1', '4 0 1'])]
  np.testing.assert_array_equal(scores, [[0, 0], [3, 3]])


class _Function:
  """A reward for long responses that can be told to fail."""

  def __init__(self):
    self.fails = False

  def __call__(self, prompts, responses):
    if self.fails:
      raise KeyError('no such answer')
    return _num_tokens(prompts, responses)


@pytest.fixture(scope='module')
def run():
  """A compiled step of PPO, its first state, prompts and `frozen`."""
  rewards_ = [tiny_roles.reward_role(11), tiny_roles.reward_role(12)]
  models, trainable, frozen = tiny_roles.make(rewards_)
  optimizer = optimizers.by_name(dict.fromkeys(trainable, optax.adam(1e-2)))
  mesh = partitioning.make_mesh()
  function = _Function()
  state = state_lib.create(trainable, optimizer, 0.1)
  whole = partitioning.replicated(mesh)
  step = iteration.Iteration(
    tiny_roles.make_programs(models),
    _scoring(((function, 1.0),), 'min'),
    learner_lib.Learner(
      models=models,
      algorithm=ppo.Ppo(epochs=2),
      optimizer=optimizer,
      schedule=lambda step: jnp.float32(1e-2),
      shaping=rewards.RewardShaping(),
      temperature=tiny_roles.SAMPLING.temperature,
    ),
    mesh,
    jax.tree.map(lambda _: whole, state),
  )
  return step, state, frozen, function


def _copy(tree):
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def test_steps_change_the_policy_and_never_the_reference(run):
  step, state, frozen, _ = run
  state = _copy(state)
  batch = tiny_roles.prompts()
  before = jax.tree.map(lambda x: np.array(x, copy=True), frozen)
  samples = step.rollout(state.trainable, frozen, 0, batch)
  first = {k: np.array(v, copy=True) for k, v in samples.items()}
  compiled = []
  for number in range(3):
    state, metrics = step(state, frozen, batch)
    compiled.append(step.newly_compiled)
    assert int(state.step) == number + 1
    assert metrics['ratio_deviation'] < 1e-5
  assert compiled == [True, False, False]
  assert step.memory_bytes > 0

  asked = {k: samples[k] for k in samples if k not in ('scores', 'values')}
  later = step.rollout.assess(state.trainable['value'], frozen, asked)
  for name in ('ref_logprobs', 'model_scores'):
    np.testing.assert_array_equal(later[name], first[name])
  assert (np.asarray(later['values']) != first['values']).all()
  jax.tree.map(np.testing.assert_array_equal, frozen, before)
  # The policy does not say the same any more.
  again = step.rollout(state.trainable, frozen, 0, batch)
  same = (np.asarray(again['response_tokens']) == first['response_tokens']) & (
    first['response_mask']
  )
  changed = np.asarray(again['logprobs']) != first['logprobs']
  assert same[..., 0].any() and changed[same].all()


def test_the_step_gives_the_randomness(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  _, one = step(_copy(state), frozen, batch)
  _, same = step(_copy(state), frozen, batch)
  for name, value in one.items():
    np.testing.assert_array_equal(same[name], value, err_msg=name)
  later = state.replace(step=jnp.int32(1))
  _, other = step(_copy(later), frozen, batch)
  assert other['entropy'] != one['entropy']


def test_the_metric_is_the_combined_score(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  samples = step.rollout(state.trainable, frozen, 0, batch)
  models = np.asarray(samples['model_scores']).min(axis=-1)
  lengths = np.asarray(samples['response_mask']).sum(axis=-1)
  _, metrics = step(_copy(state), frozen, batch)
  np.testing.assert_allclose(
    metrics['score'], (models + lengths).mean(), rtol=1e-5
  )


def test_a_function_that_fails_leaves_the_state_usable(run):
  step, state, frozen, function = run
  state = _copy(state)
  batch = tiny_roles.prompts()
  function.fails = True
  with pytest.raises(errors.DataError, match='_Function raised KeyError'):
    step(state, frozen, batch)
  function.fails = False
  after, _ = step(state, frozen, batch)  # Nothing was donated or changed.
  wanted, _ = step(_copy(run[1]), frozen, batch)
  jax.tree.map(np.testing.assert_array_equal, after, wanted)


def test_a_step_does_not_depend_on_the_padding_of_prompts(run):
  step, state, frozen, _ = run
  batch = tiny_roles.prompts()
  padded = {
    name: jnp.pad(x, ((0, 0), (0, 9))) if name.startswith('prompt') else x
    for name, x in batch.items()
  }
  (_, short), (_, long) = (
    step(_copy(state), frozen, each) for each in (batch, padded)
  )
  for name, value in short.items():
    np.testing.assert_allclose(long[name], value, rtol=1e-5, atol=1e-5)
