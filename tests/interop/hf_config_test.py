import dataclasses

import pytest

from perlhf_jax.core import errors
from perlhf_jax.interop import hf_config
from perlhf_jax.models import t5_config

SIZES = {
  'model_type': 't5',
  'vocab_size': 32128,
  'd_model': 512,
  'd_kv': 64,
  'd_ff': 1024,
  'num_layers': 8,
  'num_heads': 6,
}


def _convert(**keys):
  raw = {k: v for k, v in (SIZES | keys).items() if v != 'absent'}
  return hf_config.to_t5_config(raw, 'DIR/config.json')


def test_sizes_and_defaults_of_an_old_file():
  assert _convert() == t5_config.T5Config(
    vocab_size=32128,
    emb_dim=512,
    num_heads=6,
    num_encoder_layers=8,
    num_decoder_layers=8,
    head_dim=64,
    mlp_dim=1024,
    mlp_activations=('relu',),
    dropout_rate=0.1,
    logits_via_embedding=True,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
  )


def test_every_key_of_a_new_file_is_read():
  config = _convert(
    num_decoder_layers=3,
    relative_attention_num_buckets=16,
    relative_attention_max_distance=64,
    dropout_rate=0.0,
  )
  assert config.num_encoder_layers == 8
  assert config.num_decoder_layers == 3
  assert config.relative_attention_num_buckets == 16
  assert config.relative_attention_max_distance == 64
  assert config.dropout_rate == 0.0


@pytest.mark.parametrize(
  ('keys', 'activations', 'via_embedding'),
  [
    # The hub's files: t5-small, t5-v1_1 and flan-t5 and byt5, mt5.
    ({}, ('relu',), True),
    (
      {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
      ('gelu', 'linear'),
      False,
    ),
    (
      {
        'model_type': 'mt5',
        'feed_forward_proj': 'gated-gelu',
        'tie_word_embeddings': False,
      },
      ('gelu', 'linear'),
      False,
    ),
    # transformers 4 leaves out tie_word_embeddings where it is true.
    ({'feed_forward_proj': 'gated-silu'}, ('silu', 'linear'), True),
    # transformers 5 says of every T5 that it is tied.
    (
      {
        'feed_forward_proj': 'gated-gelu',
        'tie_word_embeddings': True,
        'scale_decoder_outputs': False,
      },
      ('gelu', 'linear'),
      False,
    ),
    (
      {'tie_word_embeddings': True, 'scale_decoder_outputs': True},
      ('relu',),
      True,
    ),
    (
      {'model_type': 'mt5', 'tie_word_embeddings': True},
      ('gelu', 'linear'),
      False,
    ),
    ({'model_type': 'mt5'}, ('gelu', 'linear'), False),
    (
      {'model_type': 'umt5', 'tie_word_embeddings': False},
      ('gelu', 'linear'),
      False,
    ),
    ({'model_type': 'umt5'}, ('gelu', 'linear'), True),
    (
      {
        'model_type': 'umt5',
        'tie_word_embeddings': True,
        'scale_decoder_outputs': False,
      },
      ('gelu', 'linear'),
      False,
    ),
    ({'feed_forward_proj': 'gelu_new'}, ('gelu',), True),
    ({'feed_forward_proj': 'gated-relu'}, ('relu', 'linear'), True),
  ],
)
def test_variants(keys, activations, via_embedding):
  config = _convert(**keys)
  assert config.mlp_activations == activations
  assert config.logits_via_embedding == via_embedding
  assert config.relpos_bias_per_layer == (keys.get('model_type') == 'umt5')


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    (
      {'model_type': 'longt5'},
      r"DIR/config.json: model_type is 'longt5'.*t5, mt5, umt5",
    ),
    ({'model_type': 'absent'}, 'model_type is None'),
    ({'d_model': 'absent', 'num_heads': 0}, 'under d_model, num_heads;'),
    ({'d_kv': '64'}, 'under d_kv;'),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon is 1e-05'),
    (
      {'feed_forward_proj': 'gelu'},
      r"'gelu'; it must be one of 'relu', .*'gated-gelu'",
    ),
    (
      {'tie_word_embeddings': False, 'scale_decoder_outputs': True},
      'scale_decoder_outputs is true though tie_word_embeddings is false',
    ),
    # Types and bounds: nothing is made of them.
    ({'num_layers': 10**7}, 'layers is 10000000; .* from 1 to 256'),
    ({'num_decoder_layers': -1}, 'num_decoder_layers is -1; it must be'),
    ({'d_model': 10**9, 'vocab_size': 10**9}, 'from 1 to 10,000,000'),
    ({'model_type': ['t5']}, r"model_type is \['t5'\]; supported"),
    ({'feed_forward_proj': ['relu']}, r"feed_forward_proj is \['relu'\]; it"),
    ({'layer_norm_epsilon': 'x'}, "layer_norm_epsilon is 'x'; it must be"),
    ({'dropout_rate': 10**400}, 'dropout_rate is 1000.*…; it must be'),
    ({'dropout_rate': 2}, 'T5Config.dropout_rate is 2'),
    ({'relative_attention_num_buckets': {}}, 'num_buckets is {}; it must'),
    ({'tie_word_embeddings': 'no'}, "tie_word_embeddings is 'no'; it must"),
  ],
)
def test_what_is_not_supported_is_named(keys, message):
  with pytest.raises(errors.CheckpointError, match=message):
    _convert(**keys)


@pytest.mark.parametrize(
  'activations',
  [('relu',), ('gelu',), ('gelu', 'linear'), ('silu', 'linear')],
)
@pytest.mark.parametrize('via_embedding', [True, False])
@pytest.mark.parametrize('per_layer', [True, False])
def test_round_trip(activations, via_embedding, per_layer):
  config = t5_config.T5Config(
    vocab_size=384,
    emb_dim=16,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=5,
    head_dim=4,
    mlp_dim=20,
    mlp_activations=activations,
    dropout_rate=0.2,
    logits_via_embedding=via_embedding,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=40,
    relpos_bias_per_layer=per_layer,
  )
  raw = hf_config.from_t5_config(config)
  assert hf_config.to_t5_config(raw, 'DIR/config.json') == config


def test_gated_gelu_is_written_under_its_usual_name():
  config = t5_config.T5Config(vocab_size=9, mlp_activations=('gelu', 'linear'))
  assert hf_config.from_t5_config(config)['feed_forward_proj'] == 'gated-gelu'


@pytest.mark.parametrize(
  ('change', 'model_type'),
  [
    ({}, 't5'),
    ({'relpos_bias_per_layer': True}, 'umt5'),
    # That of every published mT5.
    ({'vocab_size': 250_112}, 'mt5'),
  ],
)
def test_the_type_that_such_a_model_is_published_as(change, model_type):
  config = t5_config.T5Config(vocab_size=384)
  raw = hf_config.from_t5_config(dataclasses.replace(config, **change))
  assert raw['model_type'] == model_type
  assert raw['architectures'] == [
    f'{model_type.upper()}ForConditionalGeneration'
  ]


def test_a_type_may_be_given():
  config = t5_config.T5Config(
    vocab_size=384, mlp_activations=('gelu', 'linear')
  )
  raw = hf_config.from_t5_config(config, 'mt5')
  assert raw['model_type'] == 'mt5'
  assert hf_config.to_t5_config(raw, 'DIR/config.json') == config


@pytest.mark.parametrize(
  ('change', 'model_type', 'message'),
  [
    ({'relpos_bias_per_layer': True}, 't5', 'per stack; write it as a umt5'),
    ({}, 'umt5', 'a umt5 has one position bias per layer; write it as a t5'),
    ({'logits_via_embedding': True}, 'mt5', 'write it as a t5'),
    ({}, 'longt5', "'longt5' is not a model_type .* t5, mt5, umt5"),
    (
      {'mlp_activations': ('linear',)},
      None,
      r"mlp_activations is \('linear',\)",
    ),
  ],
)
def test_what_cannot_be_written_is_named(change, model_type, message):
  config = t5_config.T5Config(vocab_size=384)
  with pytest.raises(errors.CheckpointError, match=message):
    hf_config.from_t5_config(dataclasses.replace(config, **change), model_type)
