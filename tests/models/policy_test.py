import flax
import jax
import numpy as np
import pytest
import tiny_models

from perlhf_jax.models import lora
from perlhf_jax.models import policy

CONFIG = tiny_models.CONFIG
BATCH, RESPONSES, LENGTH = 3, 2, 5


@pytest.fixture(scope='module')
def adapted():
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=3))
  return model, {'params': tiny_models.params(), 'lora': adapters}


@pytest.fixture(scope='module')
def prompts():
  return tiny_models.prompts(0, BATCH, 7)


@pytest.fixture(scope='module')
def responses():
  tokens, mask = tiny_models.ragged_tokens(1, BATCH * RESPONSES, LENGTH)
  shape = (BATCH, RESPONSES, LENGTH)
  return tokens.reshape(shape), mask.reshape(shape)


@pytest.mark.parametrize('temperature', [None, 0.7])
def test_logprobs_equal_one_response_and_one_token_at_a_time(
  adapted, prompts, responses, temperature
):
  model, variables = adapted
  given = {} if temperature is None else {'temperature': temperature}
  tokens, mask = responses
  actual = jax.jit(
    lambda *args: policy.response_logprobs(model, variables, *args, **given)
  )(prompts, tokens)
  assert actual.shape == tokens.shape
  call = jax.jit(model.apply)
  single = tiny_models.one_by_one(prompts)
  for row in range(BATCH):
    for sample in range(RESPONSES):
      for t in range(LENGTH):
        if not mask[row, sample, t]:
          continue
        before = [0, *tokens[row, sample, :t]]
        inputs = np.zeros((1, LENGTH), np.int32)
        inputs[0, : len(before)] = before
        logits = call(variables, single[row], inputs)
        logits = np.asarray(logits[0, t], np.float64) / (temperature or 1.0)
        wanted = logits[tokens[row, sample, t]] - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(actual[row, sample, t], wanted, atol=1e-5)


def test_values_read_the_state_before_each_token(adapted, prompts, responses):
  model, variables = adapted
  tokens, _ = responses
  rng = np.random.default_rng(3)
  head = {
    'kernel': rng.normal(size=(CONFIG.emb_dim, 1)).astype(np.float32),
    'bias': np.array([0.5], np.float32),
  }
  value = policy.ValueModel(model)
  compute = jax.jit(
    lambda tokens: value.values(
      {**variables, 'heads': {'value': head}}, prompts, tokens
    )
  )
  values = np.asarray(compute(tokens))
  assert values.shape == tokens.shape

  single = tiny_models.one_by_one(prompts)

  def states(row, sample):
    inputs = np.array([[0, *tokens[row, sample, :-1]]], np.int32)

    def decode(model):
      return model.decode(model.encode(single[row]), inputs)

    return model.apply(variables, method=decode)[0]

  for row in range(BATCH):
    for sample in range(RESPONSES):
      wanted = np.asarray(states(row, sample)) @ head['kernel'][:, 0] + 0.5
      np.testing.assert_allclose(values[row, sample], wanted, atol=1e-4)

  # A value must not know the token that is going to be chosen.
  changed = tokens.copy()
  changed[:, :, 3] = np.where(tokens[:, :, 3] == 5, 6, 5)
  other = np.asarray(compute(changed))
  np.testing.assert_array_equal(other[:, :, :4], values[:, :, :4])
  assert np.all(other[:, :, 4] != values[:, :, 4])


def test_a_new_value_model_says_zero(adapted, prompts, responses):
  model, variables = adapted
  boxed = policy.init_value_heads(CONFIG)
  heads = flax.core.meta.unbox(boxed)
  values = policy.ValueModel(model).values(
    {**variables, 'heads': heads}, prompts, responses[0]
  )
  np.testing.assert_array_equal(values, 0.0)
