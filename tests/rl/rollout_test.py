import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_roles

from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.rl import experience
from perlhf_jax.rl import shared_backbone
from perlhf_jax.sampling import decoding

EOS = decoding.EOS_ID


@pytest.fixture(scope='module')
def rewards():
  return [tiny_roles.reward_role(11), tiny_roles.reward_role(12, True)]


@pytest.fixture(scope='module')
def roles(rewards):
  return tiny_roles.make(rewards)


@pytest.fixture(scope='module')
def rollout(roles):
  return tiny_roles.make_rollout(roles[0])


@pytest.fixture(scope='module')
def samples(rollout, roles):
  """Assessed samples, some of which end and some of which are cut."""
  _, trainable, frozen = roles
  samples = rollout(trainable, frozen, 5, tiny_roles.prompts())
  samples = jax.tree.map(np.asarray, samples)
  ended = np.asarray(
    experience.has_eos(samples.response_tokens, samples.response_mask)
  )
  assert ended.any() and not ended.all()
  return samples


def test_shapes(samples):
  shape = (tiny_roles.BATCH, tiny_roles.RESPONSES, tiny_roles.LENGTH)
  for name in (
    'response_tokens',
    'response_mask',
    'logprobs',
    'ref_logprobs',
    'values',
  ):
    assert getattr(samples, name).shape == shape, name
  assert samples.model_scores.shape == (*shape[:2], 2)
  assert samples.example_mask.all()


def test_logprobs_are_those_of_the_learner(samples, roles):
  models, trainable, frozen = roles
  mask = samples.response_mask

  def taught(model, variables):
    compute = jax.jit(
      lambda variables: policy_lib.response_logprobs(
        model,
        variables,
        samples.prompts,
        samples.response_tokens,
        temperature=tiny_roles.SAMPLING.temperature,
      )
    )
    return np.asarray(compute(variables))[mask]

  policy = shared_backbone.role_variables(frozen, trainable['policy'])
  policy = taught(models.policy, policy)
  np.testing.assert_allclose(policy, samples.logprobs[mask], atol=1e-5)
  # The reference is the backbone, at the temperature of the policy.
  reference = taught(models.reference, {'params': frozen['params']})
  np.testing.assert_allclose(reference, samples.ref_logprobs[mask], atol=1e-5)
  assert np.abs(policy - reference).max() > 0.1


def _own_scores(model, variables, samples):
  """Scores each response alone, as text that ends with EOS would be."""
  score = jax.jit(model.score)
  scores = np.zeros(samples.response_mask.shape[:2], np.float32)
  for row, number in np.ndindex(scores.shape):
    prompt = samples.prompts.tokens[row][samples.prompts.mask[row]]
    mask = samples.response_mask[row, number]
    response = samples.response_tokens[row, number][mask]
    if EOS not in response:
      response = np.append(response, EOS)
    tokens, masks = np.zeros((2, 1, 11), np.int32), np.zeros((2, 1, 11), bool)
    for i, text in enumerate((prompt, response)):
      tokens[i, 0, : len(text)], masks[i, 0, : len(text)] = text, True
    prompt = prompts_lib.Prompts(tokens[0], masks[0])
    scores[row, number] = score(variables, prompt, tokens[1], masks[1])[0]
  return scores


def test_scores_are_those_of_the_reward_models_on_the_text(
  samples, roles, rewards
):
  (model, shares), (other_model, owns) = rewards
  params = roles[2]['params']
  actual = samples.model_scores
  wanted = _own_scores(model, {'params': params, **shares}, samples)
  np.testing.assert_allclose(actual[..., 0], wanted, atol=2e-5)
  wanted = _own_scores(other_model, owns, samples)
  np.testing.assert_allclose(actual[..., 1], wanted, atol=2e-5)
  # The second would say other things of the shared backbone.
  wrong = _own_scores(other_model, {**owns, 'params': params}, samples)
  assert np.abs(actual[..., 1] - wrong).min() > 1e-3


def test_samples_are_a_function_of_seed_and_step(rollout, samples, roles):
  models, trainable, frozen = roles
  batch = tiny_roles.prompts()

  def tokens(rollout, number):
    number = np.int32(number)
    return np.asarray(
      rollout.sample(trainable['policy'], frozen, number, batch).response_tokens
    )

  # Between the two calls other steps were made: they leave no trace.
  assert (tokens(rollout, 6) != samples.response_tokens).any()
  np.testing.assert_array_equal(tokens(rollout, 5), samples.response_tokens)
  again = tiny_roles.make_rollout(models, seed=tiny_roles.SEED + 1)
  assert (tokens(again, 5) != samples.response_tokens).any()
  # Neither do two prompts, or two responses of a prompt, share their luck.
  batch = jax.tree.map(lambda x: x[:1].repeat(4, axis=0), batch)
  rows = tokens(rollout, 5).reshape(-1, tiny_roles.LENGTH)
  assert len({tuple(row) for row in rows}) > 4


def test_roles_that_are_not_there_are_left_out():
  models = shared_backbone.Models(t5.T5(tiny_roles.CONFIG), None, None, ())
  samples = experience.Experience(
    prompts=prompts_lib.of_tokens(jnp.ones((1, 2), jnp.int32)),
    example_mask=jnp.ones(1, bool),
    response_tokens=jnp.ones((1, 1, 3), jnp.int32),
    response_mask=jnp.ones((1, 1, 3), bool),
    logprobs=jnp.zeros((1, 1, 3)),
  )
  assessed = tiny_roles.make_rollout(models).assess(
    None, {'params': {}}, samples
  )
  assert jax.tree.structure(assessed) == jax.tree.structure(samples)


def test_a_role_has_its_own_weights_if_it_brings_any():
  frozen = {'params': 'shared', 'rewards': ()}
  assert shared_backbone.role_variables(frozen, {'lora': 'a'}) == {
    'params': 'shared',
    'lora': 'a',
  }
  assert shared_backbone.role_variables(frozen, {'params': 'own'}) == {
    'params': 'own'
  }
  # Or a part of them.
  frozen = {'params': {'vit': 'shared', 'decoder': 'shared'}}
  assert shared_backbone.role_variables(
    frozen, {'params': {'decoder': 'own'}}
  ) == {'params': {'vit': 'shared', 'decoder': 'own'}}


TOKENS = np.array([[[5, 1, 0], [5, 6, 7], [5, 6, 1], [1, 0, 0]]])
MASK = np.array(
  [
    [
      [True, True, False],
      [True, True, True],
      [True, True, True],
      [True, False, False],
    ]
  ]
)


def test_has_eos():
  np.testing.assert_array_equal(
    experience.has_eos(TOKENS, MASK), [[True, False, True, True]]
  )
  # An EOS behind the response is none.
  np.testing.assert_array_equal(
    experience.has_eos(np.array([[[5, 1]]]), np.array([[[True, False]]])),
    [[False]],
  )


def test_end_with_eos():
  tokens, mask = experience.end_with_eos(TOKENS, MASK)
  np.testing.assert_array_equal(
    tokens, [[[5, 1, 0, 0], [5, 6, 7, 1], [5, 6, 1, 0], [1, 0, 0, 0]]]
  )
  np.testing.assert_array_equal(np.asarray(mask)[..., :3], MASK)
  np.testing.assert_array_equal(
    np.asarray(mask)[..., 3], [[False, True, False, False]]
  )


def test_padding_that_no_response_needs_is_cut(roles):
  models, trainable, frozen = roles
  sampling = dataclasses.replace(tiny_roles.SAMPLING, max_length=64)
  rollout = tiny_roles.make_rollout(models, sampling)
  batch = tiny_roles.prompts()
  backbone = {'params': frozen['params']}
  lengths = set()
  for number in range(6):
    whole, longest = rollout.sampling(
      trainable['policy'], backbone, jnp.int32(number), batch
    )
    cut = rollout.sample(trainable['policy'], frozen, number, batch)
    length = cut.response_tokens.shape[-1]
    lengths.add(length)
    assert longest <= length < max(2 * longest, 17) or length == 64
    for name in ('response_tokens', 'response_mask', 'logprobs'):
      kept, padded = getattr(cut, name), getattr(whole, name)
      np.testing.assert_array_equal(kept, padded[..., :length])
      assert not np.asarray(padded[..., length:]).any()
  assert lengths <= {16, 32, 64}
  assert min(lengths) < 64


def test_what_the_roles_say_does_not_depend_on_the_padding(
  rollout, samples, roles
):
  _, trainable, frozen = roles
  names = 'response_tokens', 'response_mask', 'logprobs'
  longer = samples.replace(
    **{
      name: np.pad(getattr(samples, name), ((0, 0), (0, 0), (0, 5)))
      for name in names
    }
  )
  assessed = rollout.assess(trainable['value'], frozen, longer)
  mask = samples.response_mask
  for name in ('ref_logprobs', 'values'):
    actual = np.asarray(getattr(assessed, name))[..., : tiny_roles.LENGTH]
    np.testing.assert_allclose(
      actual[mask], getattr(samples, name)[mask], atol=1e-5
    )
  # A response that ran out of room is never longer than it was sampled.
  ended = experience.has_eos(samples.response_tokens, mask)
  np.testing.assert_allclose(
    assessed.model_scores[ended], samples.model_scores[ended], atol=2e-5
  )
  trimmed = longer.trimmed(tiny_roles.LENGTH)
  jax.tree.map(np.testing.assert_array_equal, trimmed, samples)
