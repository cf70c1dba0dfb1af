"""The configuration of a T5 model."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from perlhf_jax.core import checks
from perlhf_jax.core import errors

Activation = Annotated[str, checks.OneOf('relu', 'gelu', 'silu', 'linear')]
# Bounds are several times the largest model's values; they stop a damaged or
# hostile file from requesting more memory than a machine has.
Width = Annotated[int, checks.Range(least=1, most=1_000_000)]
Layers = Annotated[int, checks.Range(least=1, most=256)]
_Rows = Annotated[int, checks.Range(least=1, most=10_000_000)]


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Architecture and numerics of a T5 encoder-decoder.

  Defaults are the same as in T5X's `T5Config`. v1.0 models use
  `mlp_activations=('relu',)` and `logits_via_embedding=True`; v1.1 models use
  `('gelu', 'linear')` and False.

  Attributes:
    vocab_size: rows of the embedding; may exceed the tokenizer's vocabulary.
    emb_dim: width of the residual stream.
    num_heads: attention heads.
    num_encoder_layers: encoder layers.
    num_decoder_layers: decoder layers.
    head_dim: width of one head.
    mlp_dim: hidden width of the feed-forward blocks.
    mlp_activations: one name, or two for a gated block; the first of two is
      applied to `wi_0`, the second to `wi_1`.
    dropout_rate: rate for embeddings, attention weights and block outputs.
    logits_via_embedding: whether the output layer is the embedding matrix
      (its logits are divided by sqrt(emb_dim)).
    relative_attention_num_buckets: number of relative position buckets.
    relative_attention_max_distance: distance from which all positions share
      the last bucket.
    relpos_bias_per_layer: whether each layer has its own position bias
      (UMT5), instead of one per stack.
    dtype: dtype of activations and of the factors of products; sums of
      products, norms, softmax, logits and losses are always float32.
    scan_layers: whether layers are stacked and run by `nn.scan` (one layer
      compiled, for deep models). Outputs are the same either way.
    remat_policy: what the backward pass recomputes: `none`, `minimal` (all
      but the outputs of dense layers; with LoRA it recomputes the outputs of
      `wi` in the MLPs too) or `full`.
    attention_block: maximum number of queries whose attention weights, for all
      keys and heads, are held at a time; the backward pass recomputes them.
      None chooses it from the shapes: all queries if the weights are small.
      Outputs are the same.
  """

  # Fields that may differ between two runs that use the same weights.
  RUN_FIELDS: ClassVar = frozenset(
    ('dropout_rate', 'dtype', 'scan_layers', 'remat_policy', 'attention_block')
  )

  vocab_size: _Rows
  emb_dim: Width = 512
  num_heads: Width = 8
  num_encoder_layers: Layers = 6
  num_decoder_layers: Layers = 6
  head_dim: Width = 64
  mlp_dim: Width = 2048
  mlp_activations: Activation | Sequence[Activation] = ('relu',)
  dropout_rate: Annotated[float, checks.Range(least=0, below=1)] = 0.1
  logits_via_embedding: bool = False
  relative_attention_num_buckets: Width = 32
  relative_attention_max_distance: Width = 128
  relpos_bias_per_layer: bool = False
  dtype: Annotated[str, checks.OneOf('float32', 'bfloat16')] = 'float32'
  scan_layers: bool = False
  remat_policy: Annotated[str, checks.OneOf('none', 'minimal', 'full')] = 'none'
  attention_block: Annotated[int | None, checks.AtLeastOne] = None

  def __post_init__(self):
    checks.check_fields(self)
    if isinstance(self.mlp_activations, str):
      object.__setattr__(self, 'mlp_activations', (self.mlp_activations,))
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    if len(self.mlp_activations) not in (1, 2):
      raise errors.ConfigError(
        f'T5Config.mlp_activations is {self.mlp_activations}; give one name, '
        'or two for a gated block.'
      )

  @property
  def compute_dtype(self) -> jnp.dtype:
    """The dtype of activations."""
    return jnp.dtype(self.dtype)

  @property
  def image_size(self) -> int | None:
    """Side length of an image in pixels; None for a text-only model."""
    return None

  def architecture(self) -> dict[str, Any]:
    """Returns the fields that determine parameter shapes and the function."""
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if k not in self.RUN_FIELDS}
