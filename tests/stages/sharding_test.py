"""How a model of T5 1.1 base's shapes lies on a mesh of (1, 4, 2)."""

import math

import program_results
import pytest

DEVICES = 8


@pytest.fixture(scope='module')
def results(preloaded, tmp_path_factory):
  folder = tmp_path_factory.mktemp('sharding')
  return program_results.run(preloaded, 'stages/sharding_program.py', folder)


RUNS = [
  (stage, tuning, optimizer)
  for stage in ('reward_state', 'policy_state')
  for tuning in ('lora', 'full')
  for optimizer in ('adafactor', 'adamw')
]


@pytest.mark.parametrize('run', RUNS)
def test_nothing_that_can_be_split_is_replicated(results, run):
  leaves = results[run]
  assert len(leaves) > 30
  for path, shape, shard, _ in leaves:
    # Numbers, and the placeholders of Adafactor, are all that cannot be.
    can_be_split = any(size % 2 == 0 for size in shape)
    assert can_be_split == (math.prod(shape) > 1), path
    assert (shard != shape) == can_be_split, path


@pytest.mark.parametrize('run', RUNS)
def test_a_device_holds_its_share_of_the_parameters(results, run):
  total = held = replicated = 0
  for path, shape, shard, itemsize in results[run]:
    if '.opt_state' in path:
      continue
    total += math.prod(shape) * itemsize
    held += math.prod(shard) * itemsize
    if shard == shape:
      replicated += math.prod(shape) * itemsize
  backbones = {'lora': 1, 'full': 1 if run[0] == 'reward_state' else 3}
  assert total > backbones[run[1]] * 4 * 247_500_000
  assert held == pytest.approx(total / DEVICES + replicated, rel=0.05)


def test_kernels_are_split_on_both_axes(results):
  shards = {p: shard for p, _, shard, _ in results[RUNS[0]]}
  kernels = {
    path: shard for path, shard in shards.items() if path.endswith("['kernel']")
  }
  query = "['frozen']['params']['encoder']['layers']['attention']['query']"
  assert kernels[f"{query}['kernel']"] == (12, 768 // 4, 768 // 2)
  wo = "['frozen']['params']['decoder']['layers']['mlp']['wo']['kernel']"
  assert kernels[wo] == (12, 2048 // 2, 768 // 4)


def test_adapters_lie_as_the_kernels_they_adapt(results):
  shards = {p: (s, d) for p, s, d, _ in results[RUNS[0]]}
  prefix = "['state'].trainable['lora']['encoder']['layers']['attention']"
  query, out = f"{prefix}['query']['lora']", f"{prefix}['out']['lora']"
  assert shards[f"{query}['lora_a']"] == ((12, 768, 8), (12, 192, 8))
  assert shards[f"{query}['lora_b']"] == ((12, 8, 768), (12, 8, 384))
  assert shards[f"{out}['lora_a']"] == ((12, 768, 8), (12, 384, 8))
  assert shards[f"{out}['lora_b']"] == ((12, 8, 768), (12, 8, 192))


def test_caches_are_split_by_rows_and_heads(results):
  assert len(results['cache']) == 8  # Two layers, two attentions, two arrays.
  for path, shard in results['cache']:
    # [rows, heads, head_dim, length] of 8, 4, 8 and 8 on (2, 2, 2).
    assert shard == (2, 2, 8, 8), path


def test_one_dimensional_parameters_are_split_by_tensor_alone(results):
  shards = {p: (s, d) for p, s, d, _ in results['one_dim']}
  prefix = "['state'].trainable['params']['encoder']"
  query = f"{prefix}['layers']['attention']['query']['kernel']"
  assert shards[query] == ((12, 768, 768), (12, 768, 384))
  # With two-dimensional activations norms follow these.
  norm = f"{prefix}['encoder_norm']['scale']"
  assert shards[norm] == ((768,), (384,))
