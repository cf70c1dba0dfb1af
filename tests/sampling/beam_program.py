"""Beam search of an adapted policy on four simulated devices and on one.

Run by beam_test.py; writes a pickle to the path in argv[1].
"""

import os
import pickle
import sys

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

import dataclasses
import math

import jax
import numpy as np
import tiny_models

from perlhf_jax.models import lora
from perlhf_jax.sampling import beam
from perlhf_jax.training import partitioning

CONFIG = dataclasses.replace(
  tiny_models.CONFIG, vocab_size=14, num_encoder_layers=1, num_decoder_layers=1
)
BATCH, LENGTH = 8, 10
SEARCH = beam.BeamConfig(4, LENGTH, length_penalty=0.6)


def run(mesh):
  rows = partitioning.batch_sharding(mesh)
  prompts = tiny_models.prompts(0, BATCH, 9, CONFIG.vocab_size)
  model, adapters = tiny_models.adapted(lora.LoraConfig(rank=3), CONFIG)
  variables = jax.device_put(
    {'params': tiny_models.params(CONFIG), 'lora': adapters},
    partitioning.shardings_of(
      tiny_models.abstract_variables(CONFIG, model.adapters), mesh
    ),
  )

  def search(variables, prompts):
    samples, scores = beam.beam_search(model, variables, prompts, SEARCH)
    return samples.tokens, samples.mask, samples.logprobs, scores

  with partitioning.use_mesh(mesh):
    found = jax.jit(search, out_shardings=rows)(
      variables, jax.device_put(prompts, rows)
    )
  return dict(
    zip(
      ('tokens', 'mask', 'logprobs', 'scores'),
      map(np.asarray, found),
      strict=True,
    )
  )


def main(path):
  results = {}
  for shape in ((1, 1, 1), (2, 1, 2)):
    partitioner = partitioning.Partitioner(shape)
    mesh = partitioner.make_mesh(jax.devices()[: math.prod(shape)])
    results[shape] = run(mesh)
  with open(path, 'wb') as file:
    pickle.dump(results, file)


if __name__ == '__main__':
  main(sys.argv[1])
