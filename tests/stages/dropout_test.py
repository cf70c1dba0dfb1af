"""Dropout is on while a model is trained, and off while it is evaluated."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import masking
from perlhf_jax.data import kinds
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5
from perlhf_jax.stages import train_reward
from perlhf_jax.stages import train_sft

CONFIG = dataclasses.replace(tiny_models.CONFIG, dropout_rate=0.3)
PARAMS = tiny_models.params()


def _reward(objective):
  rng = np.random.default_rng(0)
  head = {
    'kernel': rng.normal(size=(CONFIG.emb_dim, 1)).astype(np.float32),
    'bias': np.zeros(1, np.float32),
  }
  model = reward_model.RewardModel(t5.T5(CONFIG))
  loss = train_reward.make_loss(model, kinds.KINDS[objective], 0.0)
  return loss, {'params': PARAMS, 'heads': {'score': head}}


def _batch(kind):
  prompts = tiny_models.prompts(0, 4, 9)
  tokens, mask = tiny_models.ragged_tokens(1, 4, 6)
  others, other_mask = tiny_models.ragged_tokens(2, 4, 6)
  return {
    'prompt_tokens': prompts.tokens,
    'prompt_mask': prompts.mask,
    'example_mask': np.ones(4, bool),
    **{
      'sft': {
        'decoder_input_tokens': np.asarray(masking.shift_right(tokens)),
        'decoder_target_tokens': tokens,
        'decoder_loss_weights': mask.astype(np.float32),
      },
      'pairwise': {
        'chosen_tokens': tokens,
        'chosen_mask': mask,
        'rejected_tokens': others,
        'rejected_mask': other_mask,
        'margins': np.zeros(4, np.float32),
      },
      'pointwise': {
        'response_tokens': tokens,
        'response_mask': mask,
        'labels': np.array([0, 1, 1, 0], np.float32),
      },
    }[kind],
  }


@pytest.mark.parametrize('kind', ['sft', 'pairwise', 'pointwise'])
def test_a_loss_drops_with_a_key_and_only_then(kind):
  if kind == 'sft':
    loss, variables = train_sft.make_loss(t5.T5(CONFIG)), {'params': PARAMS}
  else:
    loss, variables = _reward(kind)
  batch = _batch(kind)
  value = jax.jit(lambda rng: loss(variables, {}, batch, rng).loss_sum)
  off = value(None)
  one, same, other = (value(jax.random.key(seed)) for seed in (0, 0, 1))
  assert one == same
  assert len({float(off), float(one), float(other)}) == 3
  assert off == value(None)
