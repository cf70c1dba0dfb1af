"""What `averages.check` compares without reading weights."""

import dataclasses

import pytest
import tiny_pali

from perlhf_jax.checkpoints import averages
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib


def _model(path, **fields):
  config = dataclasses.replace(tiny_pali.CONFIG, **fields)
  lora = lora_lib.LoraConfig()
  vocabulary = vocabularies.byte_vocabulary()
  base = {'path': 'base', 'fingerprint': '0'}
  metadata = run_metadata.RunMetadata(
    kind=run_metadata.REWARD,
    objective='pairwise',
    tuning=run_metadata.LORA,
    model=config,
    lora=lora,
    vocabulary=vocabulary,
    base=base,
    task=None,
    task_feature_lengths={},
    truncate_prompt='keep_end',
    data_order={},
  )
  return loaded_model.LoadedModel(
    config=config,
    vocabulary=vocabulary,
    path=path,
    lora_config=lora,
    kind=metadata.kind,
    metadata=metadata,
    base=base,
  )


def test_runs_that_differ_in_numerics_only_are_averaged():
  averages.check([_model('a'), _model('b', dtype='bfloat16')])


def test_dora_is_refused_by_name():
  models = [
    dataclasses.replace(
      _model(path), lora_config=lora_lib.LoraConfig(dora=dora)
    )
    for path, dora in (('a', False), ('b', True))
  ]
  with pytest.raises(errors.CheckpointError, match=r'b has DoRA .*convert'):
    averages.check(models)
  with pytest.raises(errors.CheckpointError, match=r'b has DoRA .*convert'):
    averages.check(models[::-1])


def test_bases_of_dora_are_compared_before_a_merge_is_advised():
  first, second = (
    dataclasses.replace(
      _model(path), lora_config=lora_lib.LoraConfig(dora=True)
    )
    for path in ('a', 'b')
  )
  other = dataclasses.replace(second, base={'path': 'x', 'fingerprint': '1'})
  with pytest.raises(errors.CheckpointError, match='a and b differ in base'):
    averages.check([first, other])
  with pytest.raises(errors.CheckpointError, match=r'a has DoRA .*one base'):
    averages.check([first, second])


def test_a_model_tells_its_adapters():
  model = _model('a')
  dora = lora_lib.LoraConfig(dora=True)
  metadata = dataclasses.replace(model.metadata, lora=dora)
  other = dataclasses.replace(model, metadata=metadata)
  assert ', LoRA, step' in str(model) and ', DoRA, step' in str(other)
  assert dora.title.startswith('DoRA of rank 8, scale 1, ')


@pytest.mark.parametrize(
  ('fields', 'what'),
  [
    ({'vit': tiny_pali.CONFIG.with_image_size(56).vit}, 'image size'),
    ({'train_vit': True}, 'TRAIN_VIT'),
    ({'train_projection': False}, 'train_projection'),
    ({'mlp_dim': 48}, 'architecture'),
  ],
)
def test_a_difference_is_named(fields, what):
  with pytest.raises(errors.CheckpointError, match=what) as error:
    averages.check([_model('a'), _model('b', **fields)])
  assert 'a and b differ' in str(error.value)
