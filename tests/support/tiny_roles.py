"""The roles of reinforcement learning, tiny and with random weights.

Every adapter and head is random, so that policy, reference and value differ
from the first step on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models

from perlhf_jax.core import masking
from perlhf_jax.models import lora
from perlhf_jax.models import policy
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses
from perlhf_jax.rl import algorithm
from perlhf_jax.rl import shared_backbone
from perlhf_jax.rl import step
from perlhf_jax.sampling import sampler
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

CONFIG = dataclasses.replace(
  tiny_models.CONFIG,
  vocab_size=14,
  num_encoder_layers=1,
  num_decoder_layers=1,
)
LORA = lora.LoraConfig(rank=2)
# As gin/lora/decoder.gin has it.
DECODER_LORA = lora.LoraConfig(rank=2, target_modules=('decoder/layers.*',))
BATCH, RESPONSES, LENGTH = 4, 2, 6
SAMPLING = sampler.SamplingConfig(
  max_length=LENGTH, temperature=0.8, num_samples=RESPONSES
)
SEED = 3


def _device(tree):
  # A copy: what a test donates must not be the tree of another test.
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def head(seed):
  """A scalar head of which no weight is zero."""
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(CONFIG.emb_dim, 1)).astype(np.float32)
  return {'kernel': 0.5 * kernel, 'bias': np.array([0.25], np.float32)}


def reward_role(seed, own_params=False, lora_config=LORA):
  """A reward model and its variables, with a backbone of its own or not."""
  if own_params:
    params = tiny_models.params(CONFIG, seed)
    variables = {'params': params, 'heads': {'score': head(seed)}}
    return reward_model.RewardModel(t5.T5(CONFIG)), _device(variables)
  model, adapters = tiny_models.adapted(lora_config, CONFIG, seed)
  variables = {'lora': adapters, 'heads': {'score': head(seed)}}
  return reward_model.RewardModel(model), _device(variables)


def make(rewards=(), lora_config=LORA):
  """Roles with LoRA; returns models, `trainable` and `frozen`.

  Args:
    rewards: of `reward_role`.
    lora_config: of policy and value model.
  """
  model, adapters = tiny_models.adapted(lora_config, CONFIG, 1)
  _, value_adapters = tiny_models.adapted(lora_config, CONFIG, 2)
  models = shared_backbone.Models(
    policy=model,
    value=policy.ValueModel(model),
    reference=t5.T5(CONFIG),
    rewards=tuple(model for model, _ in rewards),
  )
  trainable = {
    'policy': {'lora': adapters},
    'value': {'lora': value_adapters, 'heads': {'value': head(7)}},
  }
  frozen = {
    'params': _device(tiny_models.params(CONFIG)),
    'rewards': tuple(variables for _, variables in rewards),
  }
  return models, _device(trainable), frozen


def make_rollout(models, sampling=SAMPLING, seed=SEED):
  """The compiled programs of a rollout."""
  return step.Rollout(models, sampling, seed, partitioning.make_mesh())


def prompts(seed=0, batch=BATCH):
  """A batch of prompts on the mesh."""
  tokens, mask = tiny_models.ragged_tokens(seed, batch, 7, CONFIG.vocab_size)
  prompts = {
    'prompt_tokens': tokens,
    'prompt_mask': mask,
    'example_mask': np.ones(batch, bool),
  }
  return placement.shard_batch(prompts, partitioning.make_mesh())


def decode(tokens):
  """Tokens as text, EOS included."""
  return ' '.join(str(token) for token in tokens)


def outputs(models, frozen, trainable, samples):
  """What the models say, one response a row, its prompt beside it."""
  tokens = samples.response_tokens
  count, length = tokens.shape[1:]
  prompts = jax.tree.map(
    lambda x: jnp.repeat(x, count, axis=0), samples.prompts
  )
  targets = tokens.reshape(-1, length)
  inputs = masking.shift_right(targets)
  logits = models.policy.apply(
    {**frozen, **trainable['policy']}, prompts, inputs
  )
  logprobs = losses.token_logprobs(logits / SAMPLING.temperature, targets)
  values = None
  if 'value' in trainable:

    def states(model):
      return model.decode(model.encode(prompts), inputs)

    role = trainable['value']
    hidden = models.value.backbone.apply(
      {**frozen, 'lora': role['lora']}, method=states
    )
    head = role['heads']['value']
    values = hidden @ head['kernel'][:, 0] + head['bias'][0]
    values = values.reshape(tokens.shape)
  return algorithm.Outputs(logprobs.reshape(tokens.shape), values)
