import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roles

from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.rl import experience
from perlhf_jax.rl import scoring
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
  return experience.Experience(
    prompts_lib.Prompts(jnp.array(PROMPTS), jnp.array(PROMPT_MASK)),
    jnp.array(example_mask),
    jnp.array(RESPONSES),
    jnp.array(RESPONSE_MASK),
    jnp.zeros(RESPONSES.shape),
    **more,
  )


def _scoring(functions=(), reduce='mean', model_weight=1.0):
  return scoring.Scoring(
    reduce,
    model_weight,
    functions,
    tiny_roles.decode,
    partitioning.make_mesh(),
  )


def test_texts_are_rows_with_the_prompt_before_each_response():
  prompts, responses = scoring.texts(_samples(), tiny_roles.decode)
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
