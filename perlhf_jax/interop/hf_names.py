"""The Hugging Face tensor of each parameter of a T5.

T5X names parameters after modules, and its kernels are `[in, out]`. Hugging
Face numbers sublayers, and its matrices are `[out, in]`. So every matrix except
the embedding is transposed.
"""

from collections.abc import Iterator
from typing import NamedTuple

from perlhf_jax.models import t5_config

EMBEDDING = 'token_embedder/embedding'
LOGITS = 'decoder/logits_dense/kernel'
SHARED = 'shared.weight'
LM_HEAD = 'lm_head.weight'

# Copies of the embedding that some versions of transformers write as well.
EMBEDDING_COPIES = (
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
)
# Unused tensors in the original t5-small, t5-base, ... files.
UNUSED = (
  'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
)

_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


class Entry(NamedTuple):
  """One parameter in both formats.

  Attributes:
    path: path of the parameter, such as 'encoder/layers_0/mlp/wi/kernel'.
    shape: shape of the parameter.
    tensor: name of the tensor in the Hugging Face files.
    transposed: whether the tensor is the parameter's transpose.
  """

  path: str
  shape: tuple[int, ...]
  tensor: str
  transposed: bool

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Shape of the tensor."""
    return self.shape[::-1] if self.transposed else self.shape


def entries(config: t5_config.T5Config) -> tuple[Entry, ...]:
  """Returns every parameter of a model with unrolled layers."""
  table = [Entry(EMBEDDING, (config.vocab_size, config.emb_dim), SHARED, False)]
  table.extend(_stack(config, 'encoder', config.num_encoder_layers))
  table.extend(_stack(config, 'decoder', config.num_decoder_layers))
  if not config.logits_via_embedding:
    table.append(
      Entry(LOGITS, (config.emb_dim, config.vocab_size), LM_HEAD, True)
    )
  return tuple(table)


def _stack(
  config: t5_config.T5Config, stack: str, num_layers: int
) -> Iterator[Entry]:
  if not config.relpos_bias_per_layer:
    yield _position_bias(config, stack, f'{stack}.block.0')
  yield _norm(config, f'{stack}/{stack}_norm', f'{stack}.final_layer_norm')
  for index in range(num_layers):
    layer = f'{stack}/layers_{index}'
    if config.relpos_bias_per_layer:
      yield _position_bias(config, layer, f'{stack}.block.{index}')
    block = f'{stack}.block.{index}.layer'
    if stack == 'encoder':
      sublayers = (('attention', 'pre_attention', 'SelfAttention'),)
    else:
      sublayers = (
        ('self_attention', 'pre_self_attention', 'SelfAttention'),
        ('encoder_decoder_attention', 'pre_cross_attention', 'EncDecAttention'),
      )
    for number, (module, norm, hf_module) in enumerate(sublayers):
      yield _norm(
        config, f'{layer}/{norm}_layer_norm', f'{block}.{number}.layer_norm'
      )
      yield from _attention(
        config, f'{layer}/{module}', f'{block}.{number}.{hf_module}'
      )
    block = f'{block}.{len(sublayers)}'
    yield _norm(config, f'{layer}/pre_mlp_layer_norm', f'{block}.layer_norm')
    yield from _mlp(config, f'{layer}/mlp', f'{block}.DenseReluDense')


def _position_bias(config: t5_config.T5Config, path: str, block: str) -> Entry:
  return Entry(
    f'{path}/relpos_bias/rel_embedding',
    (config.num_heads, config.relative_attention_num_buckets),
    f'{block}.layer.0.SelfAttention.relative_attention_bias.weight',
    True,
  )


def _norm(config: t5_config.T5Config, path: str, tensor: str) -> Entry:
  return Entry(f'{path}/scale', (config.emb_dim,), f'{tensor}.weight', False)


def _kernel(path: str, shape: tuple[int, int], tensor: str) -> Entry:
  return Entry(f'{path}/kernel', shape, f'{tensor}.weight', True)


def _attention(
  config: t5_config.T5Config, path: str, tensor: str
) -> Iterator[Entry]:
  shape = (config.emb_dim, config.num_heads * config.head_dim)
  for name, hf_name in _PROJECTIONS.items():
    yield _kernel(
      f'{path}/{name}',
      shape[::-1] if name == 'out' else shape,
      f'{tensor}.{hf_name}',
    )


def _mlp(config: t5_config.T5Config, path: str, tensor: str) -> Iterator[Entry]:
  shape = (config.emb_dim, config.mlp_dim)
  gated = len(config.mlp_activations) > 1
  for name in ('wi_0', 'wi_1') if gated else ('wi',):
    yield _kernel(f'{path}/{name}', shape, f'{tensor}.{name}')
  yield _kernel(f'{path}/wo', shape[::-1], f'{tensor}.wo')
