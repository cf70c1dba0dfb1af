import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.models import lora
from perlhf_jax.models import merge
from perlhf_jax.models import t5

LORA = lora.LoraConfig(rank=3, target_modules=(r'.*attention/(query|value)',))


@pytest.mark.parametrize('scan_layers', [False, True])
def test_merged_model_equals_unmerged(scan_layers):
  config = dataclasses.replace(tiny_models.CONFIG, scan_layers=scan_layers)
  model, adapters = tiny_models.adapted(LORA, config)
  params = tiny_models.params(config)
  merged, report = merge.merge_and_check(
    model, params, adapters, tolerance=1e-5
  )
  assert 0 < report.max_logit_difference <= 1e-5
  assert report.lost_updates == 0
  # The report is not the only witness, and the merge was no small matter.
  response, _ = tiny_models.ragged_tokens(4, 2, 7)
  inputs = tiny_models.prompts(3, 2, 9), response
  bare = jax.jit(t5.T5(config).apply)
  unmerged_logits = jax.jit(model.apply)(
    {'params': params, 'lora': adapters}, *inputs
  )
  merged_logits = bare({'params': merged}, *inputs)
  np.testing.assert_allclose(merged_logits, unmerged_logits, atol=1e-5)
  base_logits = bare({'params': params}, *inputs)
  assert np.abs(merged_logits - base_logits).max() > 0.1


def test_too_large_a_difference_is_refused():
  model, adapters = tiny_models.adapted(LORA)
  params = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.bfloat16), tiny_models.params()
  )
  with pytest.raises(errors.CheckpointError) as error:
    merge.merge_and_check(model, params, adapters, tolerance=1e-5)
  assert 'more than the tolerance 1e-05' in str(error.value)
  assert 'unmerged' in str(error.value)


def test_a_nan_is_refused():
  model, adapters = tiny_models.adapted(LORA)
  params = jax.tree.map(np.copy, tiny_models.params())
  params['encoder']['encoder_norm']['scale'][0] = np.nan
  with pytest.raises(errors.CheckpointError, match='nan'):
    merge.merge_and_check(model, params, adapters, tolerance=1e9)


def test_updates_lost_in_a_bfloat16_backbone_are_counted():
  model, adapters = tiny_models.adapted(LORA)
  # Updates of about 1e-4 of a weight: most vanish in 8 bits of mantissa.
  adapters = jax.tree.map(lambda x: x * 1e-2, adapters)
  exact = tiny_models.params()
  coarse = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), exact)
  _, report = merge.merge_and_check(model, coarse, adapters, tolerance=1.0)
  merged = lora.merge_lora(coarse, adapters, LORA)
  lost = total = 0
  for stack in ('encoder', 'decoder'):
    for layer in ('layers_0', 'layers_1'):
      for name in ('attention', 'self_attention', 'encoder_decoder_attention'):
        if name not in coarse[stack][layer]:
          continue
        for projection in ('query', 'value'):
          before = np.asarray(coarse[stack][layer][name][projection]['kernel'])
          after = np.asarray(merged[stack][layer][name][projection]['kernel'])
          lost += int((before == after).sum())
          total += before.size
  assert report.lost_updates == pytest.approx(lost / total, abs=1e-3)
  assert report.lost_updates > 0.5
  _, report = merge.merge_and_check(model, exact, adapters, tolerance=1.0)
  assert report.lost_updates < 0.01
