"""What was trained on a mesh, or on two hosts, is exported as on one device."""

import dataclasses
import functools

import everywhere_program
import everywhere_runs
import folders
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tiny_models

from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output

# `fsdp_tensor` is a mesh of (1, 4, 2).
ELSEWHERE = ('fsdp_tensor', 'two_hosts')
_HEAD = 'reward_head.safetensors'


@pytest.fixture(scope='module')
def root(tmp_path_factory, preloaded):
  """Reward models with LoRA of `base` and of `ELSEWHERE`, and all exports.

  Every model is exported on one device, and on a mesh of (1, 4, 2).
  """
  root = tmp_path_factory.mktemp('exports')
  # All widths are multiples of what they are split by.
  config = dataclasses.replace(
    tiny_models.CONFIG,
    vocab_size=384,
    num_heads=4,
    head_dim=4,
    mlp_dim=24,
  )
  contents = hf_output.contents(
    tiny_models.params(config),
    config,
    vocabulary=vocabularies.to_dict(vocabularies.byte_vocabulary(125)),
  )
  output.write(contents, root / 'hf')
  run = functools.partial(everywhere_runs.run, preloaded)
  runs = everywhere_runs.RUNS
  run(root / 'two_hosts', *runs['two_hosts'], stages='x')
  base = root / 'base'
  everywhere_program.prepare(base)
  everywhere_program.run_stages(base, '(1,1,1)', 'x')
  # It exports what the others have trained, and what it trains itself.
  run(root / 'fsdp_tensor', *runs['fsdp_tensor'], stages='xy')
  everywhere_program.run_stages(base, '(1,1,1)', 'y')
  return root


def _tensors(folder):
  return {
    (file.name, name): array
    for file in folder.glob('*.safetensors')
    for name, array in safetensors_numpy.load_file(file).items()
  }


@pytest.mark.parametrize('to', ['hf', 'peft'])
@pytest.mark.parametrize('trained', ['base', *ELSEWHERE])
def test_one_checkpoint_is_exported_the_same_everywhere(trained, to, root):
  # Of the same checkpoint: equal to the bit.
  here, there = (
    folders.files(root / each / 'out' / f'{trained}_{to}')
    for each in ('base', 'fsdp_tensor')
  )
  assert len(here) >= 4 and _HEAD in here
  assert here == there


@pytest.mark.parametrize('to', ['hf', 'peft'])
@pytest.mark.parametrize('trained', ELSEWHERE)
def test_what_is_trained_elsewhere_is_exported_alike(trained, to, root):
  # Of a checkpoint that was trained elsewhere: equal up to rounding.
  out = root / 'base' / 'out'
  ours, theirs = (_tensors(out / f'{each}_{to}') for each in (trained, 'base'))
  assert ours.keys() == theirs.keys() and (_HEAD, 'weight') in ours
  for name, array in theirs.items():
    np.testing.assert_allclose(
      ours[name], array, rtol=0, atol=1e-5, err_msg=str(name)
    )
  # Training has moved them further than that.
  if to == 'peft':
    moved = [
      np.abs(array).max() for (_, name), array in theirs.items() if 'B' in name
    ]
    assert min(moved) > 1e-4
    return
  start = safetensors_numpy.load_file(root / 'hf' / 'model.safetensors')
  moved = {
    name: np.abs(array - start[name]).max()
    for (_, name), array in theirs.items()
    if name in start
  }
  assert max(moved.values()) > 1e-4
