"""The loss of preference tuning against loops over logits of single rows."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import tiny_roles

from perlhf_jax.core import tree_paths
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.stages import train_dpo

CONFIG, BATCH, LENGTH, BETA = tiny_roles.CONFIG, 4, 6, 0.3
# Above the longest response, so that none counts as cut.
LIMIT = LENGTH + 1


def _batch():
  prompts, chosen, rejected = (
    tiny_models.ragged_tokens(seed, BATCH, length, CONFIG.vocab_size)
    for seed, length in ((0, 7), (1, LENGTH), (2, LENGTH))
  )
  return {
    **{
      f'{name}_{what}': array
      for name, both in (
        ('prompt', prompts),
        ('chosen', chosen),
        ('rejected', rejected),
      )
      for what, array in zip(('tokens', 'mask'), both, strict=True)
    },
    'margins': np.array([0.0, 0.5, 0.0, 1.0], np.float32),
    'example_mask': np.array([True, True, True, False]),
  }


def _policy(lora_config):
  """Model, `trainable` and `frozen`, and a copy of the backbone."""
  model, adapters = tiny_models.adapted(lora_config, CONFIG)
  params = tiny_models.params(CONFIG)
  return model, {'policy': {'lora': adapters}}, {'params': params}


def _logits(model, variables, batch):
  """Logits of chosen and rejected responses, with teacher forcing."""
  prompts = prompts_lib.of_tokens(batch['prompt_tokens'])

  @jax.jit
  def run(tokens):
    start = np.zeros((BATCH, 1), np.int32)
    return model.apply(
      variables, prompts, jnp.concatenate([start, tokens[:, :-1]], axis=1)
    )

  return {
    name: np.asarray(run(batch[f'{name}_tokens']), np.float64)
    for name in ('chosen', 'rejected')
  }


def _logprob(logits, response, count):
  """log π of the first tokens of one response, by a loop over its logits."""
  total = 0.0
  for position, token in enumerate(response[:count]):
    row = logits[position]
    largest = row.max()
    total += row[token] - largest - np.log(np.sum(np.exp(row - largest)))
  return total


def _expected(policy, reference, batch, limit):
  """The means of the metrics over the real rows, one response at a time.

  Args:
    policy: its logits.
    reference: its logits.
    batch: the pairs.
    limit: tokens to which responses were cut.
  """
  rows = []
  for row in np.flatnonzero(batch['example_mask']):
    ratios = []
    for name in 'chosen', 'rejected':
      response = batch[f'{name}_tokens'][row][batch[f'{name}_mask'][row]]
      count = len(response) - (len(response) == limit)
      ratios.append(
        _logprob(policy[name][row], response, count)
        - _logprob(reference[name][row], response, count)
      )
    chosen, rejected = (BETA * ratio for ratio in ratios)
    lead = chosen - rejected - batch['margins'][row]
    rows.append(
      {
        'dpo': np.log1p(np.exp(-lead)),
        'ipo': (lead / BETA - 1 / (2 * BETA)) ** 2,
        'pairwise_accuracy': float(chosen > rejected),
        'margin': chosen - rejected,
        'chosen_reward': chosen,
        'rejected_reward': rejected,
        'chosen_log_ratio': ratios[0],
      }
    )
  return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def _means(loss, trainable, frozen, batch):
  found = jax.jit(loss)(trainable, frozen, batch, None)
  return {
    name: float(value) / float(found.weight_sum)
    for name, value in {'loss': found.loss_sum, **found.metric_sums}.items()
  }


@pytest.mark.parametrize(
  ('lora_config', 'name', 'limits'),
  [
    (tiny_roles.LORA, 'dpo', (LIMIT, LENGTH)),
    (tiny_roles.DECODER_LORA, 'ipo', (LIMIT,)),
  ],
  ids=['attention', 'decoder'],
)
def test_loss_and_metrics_are_those_of_a_separate_reference(
  lora_config, name, limits
):
  model, trainable, frozen = _policy(lora_config)
  batch = _batch()
  policy = _logits(model, {**frozen, **trainable['policy']}, batch)
  copied = {'params': copy.deepcopy(frozen['params'])}
  reference = _logits(t5.T5(CONFIG), copied, batch)
  seen = set()
  for limit in limits:
    found = _means(
      train_dpo.make_loss(model, name, BETA, limit), trainable, frozen, batch
    )
    expected = _expected(policy, reference, batch, limit)
    expected['loss'] = expected[name]
    assert len(found) == 6
    for metric, value in found.items():
      np.testing.assert_allclose(
        value, expected[metric], rtol=1e-4, atol=1e-5, err_msg=metric
      )
    seen.add(found['chosen_log_ratio'])
  # The EOS of a response that may have been cut does not count.
  assert len(seen) == len(limits)


def test_full_tuning_of_merged_weights_is_lora_with_a_shared_reference():
  model, trainable, frozen = _policy(tiny_roles.LORA)
  merged = tree_paths.flatten(frozen['params'])
  adapters = tree_paths.flatten(trainable['policy']['lora'])
  for path, a in adapters.items():
    if path.endswith('lora_a'):
      b = adapters[path.replace('lora_a', 'lora_b')]
      kernel = path.replace('lora/lora_a', 'kernel')
      merged[kernel] = merged[kernel] + tiny_roles.LORA.scale * (a @ b)
  batch = _batch()
  shared = _means(
    train_dpo.make_loss(model, 'dpo', BETA, LIMIT), trainable, frozen, batch
  )
  copied = _means(
    train_dpo.make_loss(t5.T5(CONFIG), 'dpo', BETA, LIMIT),
    {'policy': {'params': tree_paths.unflatten(merged)}},
    copy.deepcopy(frozen),
    batch,
  )
  for metric, value in shared.items():
    np.testing.assert_allclose(
      copied[metric], value, rtol=1e-4, atol=1e-5, err_msg=metric
    )


def test_neither_padding_nor_other_rows_change_the_gradient():
  model, trainable, frozen = _policy(tiny_roles.LORA)
  loss = train_dpo.make_loss(model, 'dpo', BETA, LENGTH + 5)
  batch = _batch()
  longer = dict(batch)
  for name in 'prompt', 'chosen', 'rejected':
    tokens, mask = batch[f'{name}_tokens'], batch[f'{name}_mask']
    junk = np.where(mask, tokens, 5).astype(np.int32)
    longer[f'{name}_tokens'] = np.pad(junk, ((0, 0), (0, 2)), mode='edge')
    longer[f'{name}_mask'] = np.pad(mask, ((0, 0), (0, 2)))
  # The last row is no example.
  longer['chosen_tokens'][-1] = 3

  @jax.jit
  def gradient(batch):
    return jax.grad(lambda x: loss(x, frozen, batch, None).loss_sum)(trainable)

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    gradient(longer),
    gradient(batch),
  )
