"""Models of reinforcement learning: a policy's log-probabilities, and values.

A policy is a plain T5; a value model is a T5 with a scalar head that is read at
each position of the response. The responses of a prompt share one encoder pass.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from perlhf_jax.core import masking
from perlhf_jax.core import typing
from perlhf_jax.models import heads
from perlhf_jax.models import output_layer
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import losses

Variables = Mapping[str, Any]


def _hidden_states(
  model: t5.T5,
  variables: Variables,
  prompts: prompts_lib.MaybeEncoded,
  response_tokens: Int[typing.Array, 'batch responses length'],
) -> Float[jax.Array, 'rows length embed']:
  """Returns the hidden state before each token, one row per response."""
  inputs = masking.shift_right(
    response_tokens.reshape(-1, response_tokens.shape[-1])
  )
  return model.apply(variables, prompts, inputs, method='hidden')


def response_logprobs(
  model: t5.T5,
  variables: Variables,
  prompts: prompts_lib.MaybeEncoded,
  response_tokens: Int[typing.Array, 'batch responses length'],
  *,
  temperature: float = 1.0,
) -> Float[jax.Array, 'batch responses length']:
  """Returns log π of each response token, without dropout.

  Args:
    model: the policy, or the bare backbone for the reference.
    variables: its `params`, and `lora` if it is adapted.
    prompts: the prompts, or their encoding.
    response_tokens: int32 `[batch, responses, length]`.
    temperature: the sampling temperature, so that the trained policy is the
      one that responses are sampled from.

  Returns:
    float32 `[batch, responses, length]`, in nats; unmasked.
  """

  def read(logits, targets):
    return losses.token_logprobs(logits / temperature, targets), ()

  states = _hidden_states(model, variables, prompts, response_tokens)
  targets = response_tokens.reshape(-1, response_tokens.shape[-1])
  logprobs, _ = output_layer.per_token(model, variables, states, read, targets)
  return logprobs.reshape(response_tokens.shape)


def init_value_heads(config: t5_config.T5Config) -> dict[str, Any]:
  """Returns boxed heads of a value model, initialized to predict zero.

  Training then starts without a baseline, not with a random one.
  """
  head = heads.ScalarHead(kernel_init=nn.initializers.zeros)
  hidden = jnp.zeros((1, config.emb_dim))
  return {'value': head.init(jax.random.key(0), hidden)['params']}


@dataclasses.dataclass(frozen=True)
class ValueModel:
  """Predicts, before each response token, the return from that token on.

  Variables are `{'params': …, 'heads': {'value': …}}`, and `'lora'` if the
  backbone is adapted (paper section 2.2: with the policy's size and rank).

  Attributes:
    backbone: the encoder-decoder, adapted or bare.
  """

  backbone: t5.T5

  def values(
    self,
    variables: Variables,
    prompts: prompts_lib.MaybeEncoded,
    response_tokens: Int[typing.Array, 'batch responses length'],
  ) -> Float[jax.Array, 'batch responses length']:
    """Returns V(X_t), where X_t is the prompt and the response before token t.

    Args:
      variables: as in the class docstring.
      prompts: the prompts, or their encoding.
      response_tokens: int32 `[batch, responses, length]`.

    Returns:
      float32 `[batch, responses, length]`; meaningless after the response.
    """
    states = _hidden_states(
      self.backbone,
      {k: v for k, v in variables.items() if k != 'heads'},
      prompts,
      response_tokens,
    )
    head = {'params': variables['heads']['value']}
    values = heads.ScalarHead().apply(head, states)
    return values.reshape(response_tokens.shape)
