"""Samples in parts on four simulated devices; run by parts_test.py.

Writes a pickle to the path in argv[1].
"""

import os
import pickle
import sys

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

import dataclasses

import jax
import numpy as np
import tiny_models

from perlhf_jax.models import t5
from perlhf_jax.sampling import sampler
from perlhf_jax.training import partitioning

CONFIG = dataclasses.replace(
  tiny_models.CONFIG, vocab_size=14, num_encoder_layers=1, num_decoder_layers=1
)
BATCH, RESPONSES, LENGTH = 8, 3, 128
DATA, TENSOR = 2, 2


def cache_bytes():
  """Keys and values of the responses of one device, in float32."""
  rows, width = BATCH * RESPONSES // DATA, CONFIG.num_heads * CONFIG.head_dim
  return 2 * 4 * CONFIG.num_decoder_layers * rows * LENGTH * width // TENSOR


def main(path):
  mesh = partitioning.make_mesh((DATA, 1, TENSOR))
  rows = partitioning.batch_sharding(mesh)
  prompts = tiny_models.prompts(0, BATCH, 9, CONFIG.vocab_size)
  keys = jax.random.split(jax.random.key(3), BATCH)
  prompts, keys = jax.device_put((prompts, keys), rows)
  params = tiny_models.params(CONFIG)

  def run(parts):
    config = sampler.SamplingConfig(LENGTH, num_samples=RESPONSES, parts=parts)

    def draw(params, prompts, keys):
      return sampler.sample(
        t5.T5(CONFIG), {'params': params}, prompts, keys, config
      ).replace(num_steps=None)

    with partitioning.use_mesh(mesh):
      lowered = jax.jit(draw, out_shardings=rows).lower(params, prompts, keys)
      program = lowered.compile()
    samples = program(params, prompts, keys)
    return {
      'tokens': np.asarray(samples.tokens),
      'logprobs': np.asarray(samples.logprobs),
      'cache_bytes': cache_bytes(),
      'temp_bytes': program.memory_analysis().temp_size_in_bytes,
    }

  with open(path, 'wb') as file:
    pickle.dump({parts: run(parts) for parts in (1, 2, 4)}, file)


if __name__ == '__main__':
  main(sys.argv[1])
