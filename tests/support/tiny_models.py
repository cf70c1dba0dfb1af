"""Tiny T5s with random weights, made without compiling an initialiser."""

import functools

import flax.linen as nn
import jax
import numpy as np

from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5_config

# As gin/models/t5_1_1_base.gin has it, for what needs no weights.
T5_1_1_BASE = t5_config.T5Config(
  vocab_size=32128,
  emb_dim=768,
  num_heads=12,
  num_encoder_layers=12,
  num_decoder_layers=12,
  head_dim=64,
  mlp_dim=2048,
  mlp_activations=('gelu', 'linear'),
)

# No two dimensions are equal, so that a swapped pair cannot go unseen; each
# divides by 2, and the width by 4, for meshes.
CONFIG = t5_config.T5Config(
  vocab_size=40,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=12,
  mlp_dim=36,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=10,
)


@functools.cache
def abstract_variables(config, adapters=None):
  """Boxed shapes of `params`, and of `lora` if adapted."""
  model = encoder_decoder.make_model(config, adapters)
  return jax.eval_shape(
    lambda: encoder_decoder.init_variables(model, jax.random.key(0))
  )


def _draw(abstract, rng, head_dim):
  """Random leaves with outputs of order one; no leaf is zero or one."""
  flat = tree_paths.flatten(nn.meta.unbox(abstract))
  leaves = {}
  for path, leaf in flat.items():
    noise = rng.normal(size=leaf.shape)
    if path.endswith(('/scale', '/lora_m')):
      noise = 1 + 0.2 * noise
    elif path.endswith(('kernel', 'lora_a', 'lora_b')):
      noise = noise / np.sqrt(leaf.shape[-2])
    # T5 divides its queries by the root of the head size in their initialiser
    # alone. Peaked attention would magnify the rounding of each machine.
    if path.endswith(('/query/kernel', '/query/lora/lora_b')):
      noise = noise / np.sqrt(head_dim)
    leaves[path] = noise.astype(np.float32)
  return tree_paths.unflatten(leaves)


@functools.cache
def params(config=CONFIG, seed=0):
  """Random `params` in numpy."""
  abstract = abstract_variables(config)['params']
  return _draw(abstract, np.random.default_rng(seed), config.head_dim)


def adapted(lora_config, config=CONFIG, seed=1):
  """Returns an adapted model and adapters of which no matrix is zero."""
  paths = encoder_decoder.dense_module_paths(config)
  adapters = lora_lib.resolve(lora_config, paths)
  model = encoder_decoder.make_model(config, adapters)
  abstract = abstract_variables(config, model.adapters)['lora']
  return model, _draw(abstract, np.random.default_rng(seed), config.head_dim)


def ragged_tokens(seed, batch, length, vocab_size=CONFIG.vocab_size):
  """Tokens ending with EOS and zeros after it, and their mask."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(2, length + 1, batch)
  lengths[0] = length
  mask = np.arange(length) < lengths[:, None]
  tokens = rng.integers(2, vocab_size, (batch, length))
  tokens[np.arange(batch), lengths - 1] = 1
  return np.where(mask, tokens, 0).astype(np.int32), mask


def prompts(seed, batch, length, vocab_size=CONFIG.vocab_size):
  """The same as prompts."""
  return prompts_lib.Prompts(*ragged_tokens(seed, batch, length, vocab_size))


def rows(batch, index):
  """The rows of prompts, or of all in a batch, that an index picks."""
  return jax.tree.map(lambda x: x[index], batch)


def one_by_one(prompts):
  """Each prompt as a batch of its own."""
  return [rows(prompts, slice(i, i + 1)) for i in range(len(prompts))]


def padded(prompts, more, junk=0):
  """Prompts that are longer by masked tokens."""
  width = (0, 0), (0, more)
  return prompts.replace(
    tokens=np.pad(prompts.tokens, width, constant_values=junk),
    mask=np.pad(prompts.mask, width),
  )


def with_junk(prompts, token):
  """Prompts with another token where the mask is False."""
  tokens = np.where(prompts.mask, prompts.tokens, token)
  return prompts.replace(tokens=tokens.astype(np.int32))
