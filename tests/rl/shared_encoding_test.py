"""One encoding for all roles gives what one for each gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
import tiny_pali
import tiny_roles

from perlhf_jax.models import policy as policy_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.rl import experience as experience_lib
from perlhf_jax.rl import ppo
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import shared_backbone
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step
from perlhf_jax.sampling import sampler
from perlhf_jax.training import optimizers

BETA = 0.2


@pytest.fixture(scope='module')
def roles():
  """All adapters in the decoder, but those of two more reward models."""
  rewards = [
    tiny_roles.reward_role(11, lora_config=tiny_roles.DECODER_LORA),
    tiny_roles.reward_role(12),
    tiny_roles.reward_role(13, own_params=True),
  ]
  return tiny_roles.make(rewards, tiny_roles.DECODER_LORA)


@pytest.fixture(scope='module')
def rollout(roles):
  return tiny_roles.make_rollout(roles[0])


@pytest.fixture(scope='module')
def samples(roles, rollout):
  _, trainable, frozen = roles
  return rollout.sample(trainable['policy'], frozen, 5, tiny_roles.prompts())


@pytest.fixture(scope='module')
def assessed(roles, rollout, samples):
  _, trainable, frozen = roles
  scores = np.random.default_rng(1).normal(size=samples.logprobs.shape[:2])
  return rollout.assess(trainable['value'], frozen, samples).replace(
    scores=jnp.asarray(scores, jnp.float32)
  )


@pytest.fixture
def unreadable(roles):
  """The weights of all roles, with an encoder that spoils what reads it."""
  frozen = roles[2]
  encoder = jax.tree.map(
    lambda x: jnp.full_like(x, jnp.nan), frozen['params']['encoder']
  )
  return {**frozen, 'params': {**frozen['params'], 'encoder': encoder}}


def test_samples_are_those_of_prompts(roles, samples):
  models, trainable, frozen = roles
  rng = jax.random.fold_in(jax.random.key(tiny_roles.SEED), 5)

  @jax.jit
  def sample(variables):
    keys = jax.random.split(rng, tiny_roles.BATCH)
    return sampler.sample(
      models.policy, variables, samples.prompts, keys, tiny_roles.SAMPLING
    )

  wanted = sample({'params': frozen['params'], **trainable['policy']})
  np.testing.assert_array_equal(samples.response_tokens, wanted.tokens)
  np.testing.assert_array_equal(samples.response_mask, wanted.mask)
  np.testing.assert_allclose(samples.logprobs, wanted.logprobs, atol=1e-5)


def test_what_the_roles_say_is_what_they_say_of_prompts(
  roles, samples, assessed
):
  models, trainable, frozen = roles
  params = {'params': frozen['params']}
  tokens = samples.response_tokens
  ended = experience_lib.end_with_eos(tokens, samples.response_mask)

  @jax.jit
  def say(params, value, rewards):
    ref_logprobs = policy_lib.response_logprobs(
      models.reference,
      params,
      samples.prompts,
      tokens,
      temperature=tiny_roles.SAMPLING.temperature,
    )
    values = models.value.values({**params, **value}, samples.prompts, tokens)
    scores = [
      model.scores({**params, **variables}, samples.prompts, *ended)
      for model, variables in zip(models.rewards, rewards, strict=True)
    ]
    return ref_logprobs, values, jnp.stack(scores, axis=-1)

  wanted = say(params, trainable['value'], frozen['rewards'])
  for name, x in zip(
    ('ref_logprobs', 'values', 'model_scores'), wanted, strict=True
  ):
    np.testing.assert_allclose(
      getattr(assessed, name), x, atol=2e-5, err_msg=name
    )


SETTINGS = {
  'one update': (reinforce.Reinforce(), {}),
  'minibatches in parts': (
    ppo.Ppo(epochs=2, minibatches=2),
    {'accumulation_steps': 2},
  ),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_an_update_equals_that_of_prompts(
  name, roles, assessed, unreadable, monkeypatch
):
  models, trainable, frozen = roles
  algorithm, options = SETTINGS[name]
  settings = settings_lib.Settings(
    algorithm, tiny_roles.SAMPLING, BETA, **options
  )
  if settings.has_one_update:
    assessed = assessed.replace(values=None)
  optimizer = optimizers.by_name(dict.fromkeys(trainable, optax.sgd(0.1)))
  state = state_lib.create(trainable, optimizer, BETA)

  def learn(frozen):
    learn = functools.partial(
      step.learn, models, settings, optimizer, lambda _: jnp.float32(0.1)
    )
    return jax.jit(learn)(state, frozen, assessed)

  shared, metrics = learn(shared_backbone.backbone_of(unreadable))
  monkeypatch.setattr(shared_backbone, 'shares_encoding', lambda role: False)
  wanted, wanted_metrics = learn(shared_backbone.backbone_of(frozen))
  for path, value in wanted_metrics.items():
    np.testing.assert_allclose(
      metrics[path], value, rtol=1e-4, atol=2e-6, err_msg=path
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), shared, wanted
  )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), shared.trainable, state.trainable
  )
  assert min(jax.tree.leaves(moved)) > 1e-5


def test_after_sampling_nobody_encodes_again(
  roles, rollout, samples, assessed, unreadable
):
  _, trainable, _ = roles
  again = rollout.assess(trainable['value'], unreadable, samples)
  np.testing.assert_array_equal(again.ref_logprobs, assessed.ref_logprobs)
  np.testing.assert_array_equal(again.values, assessed.values)
  # Of the reward models, one has adapters in the encoder, one its own weights.
  spoilt = np.isnan(again.model_scores).all(axis=(0, 1))
  np.testing.assert_array_equal(spoilt, [False, True, False])
  np.testing.assert_array_equal(
    again.model_scores[..., ::2], assessed.model_scores[..., ::2]
  )


def test_adapters_in_the_encoder_leave_the_others_their_share(
  roles, assessed, monkeypatch
):
  """A policy and a value model of the paper's sites; the rest as before."""
  encoded = []
  embed = t5.T5.embed_prompts
  monkeypatch.setattr(
    t5.T5,
    'embed_prompts',
    lambda self, *args, **kwargs: (
      encoded.append(self.adapters) or embed(self, *args, **kwargs)
    ),
  )
  models, trainable, frozen = tiny_roles.make()
  models = shared_backbone.Models(
    models.policy, models.value, models.reference, roles[0].rewards
  )
  frozen = {**frozen, 'rewards': roles[2]['rewards']}
  rollout = tiny_roles.make_rollout(models)
  samples = rollout.sample(trainable['policy'], frozen, 5, tiny_roles.prompts())
  assert samples.encoding is None
  del encoded[:]
  again = rollout.assess(
    trainable['value'], frozen, assessed.replace(encoding=None)
  )
  # Value, one reward model with adapters, one with weights; and one for all.
  assert len(encoded) == 4
  for name in ('ref_logprobs', 'model_scores'):
    np.testing.assert_allclose(
      getattr(again, name), getattr(assessed, name), atol=1e-5
    )
  assert again.encoding is None


@pytest.mark.parametrize(
  ('role', 'shares'),
  [
    ({}, True),
    ({'heads': {'value': 1}}, True),
    ({'lora': {'decoder': {'layers': 1}}, 'heads': {'value': 1}}, True),
    ({'lora': {'decoder': {'layers': 1}, 'encoder': {'layers': 1}}}, False),
    ({'lora': {'vit': {'layers': 1}, 'decoder': {'layers': 1}}}, False),
    ({'params': {'decoder': {'logits_dense': 1}}}, True),
    ({'params': {'token_embedder': {'embedding': 1}}}, False),
    # Of a PaLI, which is trained beside adapters.
    (
      {
        'params': {'image_projection': {'kernel': 1}},
        'lora': {'decoder': {'layers': 1}},
      },
      False,
    ),
  ],
)
def test_who_shares(role, shares):
  assert shared_backbone.shares_encoding(role) == shares


def test_a_pali_shares_what_it_reads_of_images():
  model, adapters = tiny_models.adapted(
    tiny_roles.DECODER_LORA, tiny_pali.CONFIG
  )
  params = tiny_models.params(tiny_pali.CONFIG)
  prompts = tiny_pali.prompts(0, 3, 5)
  tokens, mask = tiny_models.ragged_tokens(1, 6, 4)
  tokens, mask = tokens.reshape(3, 2, 4), mask.reshape(3, 2, 4)
  rewards = reward_model.RewardModel(model)
  heads = {'heads': {'score': tiny_roles.head(3)}}

  @jax.jit
  def say(source):
    variables = {'params': params, 'lora': adapters}
    logprobs = policy_lib.response_logprobs(model, variables, source, tokens)
    scores = rewards.scores({**variables, **heads}, source, tokens, mask)
    return logprobs, scores

  source = shared_backbone.PromptSource({'params': params}, prompts)
  encoding = source.of(model, {'lora': adapters})
  assert isinstance(encoding, prompts_lib.Encoded)
  assert encoding is source.of(rewards.backbone, {})
  for one, other in zip(say(encoding), say(prompts), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
