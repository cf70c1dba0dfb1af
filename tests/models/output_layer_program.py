"""Logits in chunks on eight simulated devices; run by output_layer_test.py.

Writes a pickle of values and gradients, by mesh and case, to argv[1].
"""

import math
import os
import pickle
import sys

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import chunked_logits
import jax
import tiny_models

from perlhf_jax.core import tree_paths
from perlhf_jax.models import output_layer
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

MESHES = ((2, 2, 2), (1, 8, 1))
POSITIONS = 2  # Of a chunk.


def run(mesh, name):
  model, trained, frozen = chunked_logits.make(name)
  boxed = tiny_models.abstract_variables(model.config, model.adapters)
  shardings = tree_paths.flatten(partitioning.shardings_of(dict(boxed), mesh))
  trained, frozen = (
    {path: jax.device_put(x, shardings[path]) for path, x in tree.items()}
    for tree in (trained, frozen)
  )
  names = ('hidden', 'targets', 'weights')
  batch = dict(zip(names, chunked_logits.batch(model.config), strict=True))
  batch = placement.shard_batch(batch, mesh)
  batch = [batch[name] for name in names]
  with partitioning.use_mesh(mesh):
    rows, length = batch[1].shape
    size = output_layer.chunk_length(
      length, output_layer.position_bytes(model.config, rows)
    )
    result = jax.jit(
      chunked_logits.value_and_grad(chunked_logits.chunked, model)
    )(trained, frozen, *batch)
    return (
      jax.tree.map(placement.to_host, result),
      math.ceil(chunked_logits.LENGTH / size),
    )


def main(path):
  results = {}
  for shape in MESHES:
    mesh = partitioning.make_mesh(shape)
    shares = math.prod(shape)
    whole = chunked_logits.ROWS * chunked_logits.UNTIED.vocab_size * 4
    output_layer.CHUNK_BYTES = POSITIONS * whole // shares
    for name in chunked_logits.CASES:
      results[shape, name] = run(mesh, name)
  with open(path, 'wb') as file:
    pickle.dump(results, file)


if __name__ == '__main__':
  main(sys.argv[1])
