"""Losses through `output_layer` and from whole logits, and their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models

from perlhf_jax.core import tree_paths
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import output_layer
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses

ROWS, LENGTH = 8, 7
UNTIED = tiny_models.CONFIG
TIED = dataclasses.replace(UNTIED, logits_via_embedding=True)
_OUTPUT_LAYER = ('decoder/logits_dense/', 'token_embedder/')

# Name: configuration, whether the output layer is adapted, and what trains.
CASES = {
  'untied, frozen': (UNTIED, False, ''),
  'untied, trained': (UNTIED, False, 'params'),
  'untied, adapted': (UNTIED, True, 'lora'),
  'untied, both': (UNTIED, True, 'params lora'),
  'tied, frozen': (TIED, False, ''),
  'tied, trained': (TIED, False, 'params'),
}


def make(name):
  """Returns a model and its output layer's variables, trained and frozen."""
  config, is_adapted, trains = CASES[name]
  variables = {'params': tiny_models.params(config)}
  model = t5.T5(config)
  if is_adapted:
    sites = lora_lib.LoraConfig(
      rank=4, target_modules=('decoder/logits_dense',)
    )
    model, adapters = tiny_models.adapted(sites, config)
    variables['lora'] = adapters
  flat = {
    path: jnp.asarray(x)
    for path, x in tree_paths.flatten(variables).items()
    if path.split('/', 1)[1].startswith(_OUTPUT_LAYER)
  }
  trained = {p: x for p, x in flat.items() if p.split('/')[0] in trains.split()}
  frozen = {path: x for path, x in flat.items() if path not in trained}
  return model, trained, frozen


def batch(config):
  """Hidden states, targets and weights; the last positions are padding."""
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(ROWS, LENGTH, config.emb_dim))
  targets = rng.integers(0, config.vocab_size, (ROWS, LENGTH))
  weights = rng.uniform(0.5, 2, (ROWS, LENGTH)) * (np.arange(LENGTH) < 6)
  return (
    hidden.astype(np.float32),
    targets.astype(np.int32),
    weights.astype(np.float32),
  )


def whole(model, variables, hidden, targets, weights):
  """The loss as of old, with logits of every token, and its parts."""
  logits = model.apply(variables, hidden, method='logits')
  sums = losses.weighted_sums(
    losses.token_losses(logits, targets, 0.1, 1e-2), weights
  )
  logprobs = losses.token_logprobs(logits / 0.7, targets)
  return sums.loss_sum + jnp.sum(jnp.sin(logprobs)), (sums, logprobs)


def chunked(model, variables, hidden, targets, weights):
  """The same through `output_layer`."""

  def read(logits, targets):
    loss, *rest = losses.token_losses(logits, targets, 0.1, 1e-2)
    return loss, rest

  def read_logprobs(logits, targets):
    return losses.token_logprobs(logits / 0.7, targets), ()

  loss, rest = output_layer.per_token(model, variables, hidden, read, targets)
  sums = losses.weighted_sums(losses.TokenLosses(loss, *rest), weights)
  logprobs, _ = output_layer.per_token(
    model, variables, hidden, read_logprobs, targets
  )
  return sums.loss_sum + jnp.sum(jnp.sin(logprobs)), (sums, logprobs)


def value_and_grad(function, model):
  """Returns `(trained, frozen, *batch) -> (value, gradients)`, of `trained`
  and of hidden states.
  """

  def run(trained, frozen, hidden, targets, weights):
    def loss(trained, hidden):
      variables = tree_paths.unflatten({**trained, **frozen})
      return function(model, variables, hidden, targets, weights)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
      trained, hidden
    )

  return run
