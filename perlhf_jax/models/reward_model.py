"""A reward model: a T5 backbone and a scalar head.

The encoder reads the prompt and the decoder the response. The head reads the
score from the decoder's final hidden state at the last response token, EOS. The
responses of a prompt share one encoder pass, and in the decoder one set of
cross-attention keys and values.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import heads
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config

Variables = Mapping[str, Any]


def init_heads(config: t5_config.T5Config, rng: jax.Array) -> dict[str, Any]:
  """Returns fresh, boxed heads for a backbone."""
  hidden = jnp.zeros((1, config.emb_dim))
  return {'score': heads.ScalarHead().init(rng, hidden)['params']}


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """Scores responses.

  Variables are `{'params': …, 'heads': {'score': …}}`, and `'lora'` if the
  backbone is adapted.

  Attributes:
    backbone: the encoder-decoder, adapted or bare.
  """

  backbone: t5.T5

  def scores(
    self,
    variables: Variables,
    prompts: prompts_lib.MaybeEncoded,
    response_tokens: Int[typing.Array, 'batch responses response_length'],
    response_mask: Bool[typing.Array, 'batch responses response_length'],
    *,
    dropout_rng: jax.Array | None = None,
  ) -> Float[jax.Array, 'batch responses']:
    """Scores several responses per prompt.

    A score does not depend on the other rows of the batch, on the padded
    lengths of the arrays, or on the content of the padding.

    Args:
      variables: as in the class docstring.
      prompts: the prompts, or their encoding.
      response_tokens: int32 `[batch, responses, response_length]`, each
        ending with EOS.
      response_mask: bool, of the same shape.
      dropout_rng: turns dropout on.

    Returns:
      float32 `[batch, responses]`.
    """
    batch, responses, length = response_tokens.shape
    deterministic = dropout_rng is None
    rngs = None if deterministic else {'dropout': dropout_rng}
    backbone = {k: v for k, v in variables.items() if k != 'heads'}

    def hidden_states(model):
      encoded = model.encode(prompts, deterministic=deterministic)
      # Prepend the start token without dropping EOS, so that the state at EOS
      # has seen the whole response.
      tokens = jnp.pad(response_tokens.reshape(-1, length), ((0, 0), (1, 0)))
      return model.decode(encoded, tokens, deterministic=deterministic)

    hidden = self.backbone.apply(backbone, rngs=rngs, method=hidden_states)
    mask = response_mask.reshape(-1, length)
    # Padding rows have no token; their score is read at the start token.
    mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    last = masking.gather_last_valid(hidden, mask)
    head = {'params': variables['heads']['score']}
    return heads.ScalarHead().apply(head, last).reshape(batch, responses)

  def score(
    self,
    variables: Variables,
    prompts: prompts_lib.MaybeEncoded,
    response_tokens: Int[typing.Array, 'batch response_length'],
    response_mask: Bool[typing.Array, 'batch response_length'],
    *,
    dropout_rng: jax.Array | None = None,
  ) -> Float[jax.Array, ' batch']:
    """Scores one response per prompt, `[batch, length]` to `[batch]`."""
    return self.scores(
      variables,
      prompts,
      response_tokens[:, None],
      response_mask[:, None],
      dropout_rng=dropout_rng,
    )[:, 0]
