import pytest

from perlhf_jax.core import errors
from perlhf_jax.models import t5_config


def test_defaults_are_t5xs():
  config = t5_config.T5Config(vocab_size=32128)
  assert config.emb_dim == 512
  assert config.num_heads == 8
  assert config.num_encoder_layers == config.num_decoder_layers == 6
  assert config.head_dim == 64
  assert config.mlp_dim == 2048
  assert config.mlp_activations == ('relu',)
  assert config.dropout_rate == 0.1
  assert not config.logits_via_embedding
  assert config.relative_attention_num_buckets == 32
  assert config.relative_attention_max_distance == 128


def test_activations_become_a_hashable_tuple():
  gated = t5_config.T5Config(vocab_size=4, mlp_activations=('gelu', 'linear'))
  assert hash(gated)
  assert gated.mlp_activations == ('gelu', 'linear')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'remat_policy': 'some'},
      r"remat_policy is 'some'.*'none', 'minimal', 'full'",
    ),
    ({'mlp_activations': ('swish',)}, r"'swish'.*'relu', 'gelu'"),
    ({'mlp_activations': ()}, 'one name, or two'),
    ({'mlp_activations': ('relu',) * 3}, 'one name, or two'),
    (
      {'dropout_rate': 1.0},
      'dropout_rate is 1.0; it must be a number of at least 0 and below 1',
    ),
    (
      {'attention_block': 0},
      'attention_block is 0; it must be a whole number of at least 1',
    ),
    (
      {'dtype': 'bf16'},
      "dtype is 'bf16'; it must be one of 'float32', 'bfloat16'",
    ),
  ],
)
def test_bad_fields(fields, message):
  with pytest.raises(errors.ConfigError, match=message):
    t5_config.T5Config(vocab_size=4, **fields)


def test_architecture_leaves_out_what_a_run_may_change():
  one = t5_config.T5Config(vocab_size=4)
  other = t5_config.T5Config(
    vocab_size=4,
    dropout_rate=0.5,
    dtype='bfloat16',
    scan_layers=True,
    remat_policy='full',
    attention_block=8,
  )
  deeper = t5_config.T5Config(vocab_size=4, num_encoder_layers=7)
  assert one.architecture() == other.architecture()
  assert one.architecture() != deeper.architecture()
