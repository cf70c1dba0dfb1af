"""Files of gin/lora adapt the layers that their heads name, and no other."""

import dataclasses
import functools
import pathlib
import re

import gin
import pytest
import tiny_models
import tiny_pali

from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora

FOLDER = pathlib.Path(__file__).parents[2] / 'gin' / 'lora'
PLAIN = dataclasses.replace(tiny_models.CONFIG, mlp_activations=('relu',))
GATED = tiny_models.CONFIG
SMALL = dataclasses.replace(
  tiny_models.T5_1_1_BASE, num_encoder_layers=8, num_decoder_layers=8
)


@pytest.fixture
def preset():
  """Reads a file as a command does."""

  def read(name, *bindings):
    gin.parse_config_files_and_bindings(
      [str(FOLDER / f'{name}.gin')], list(bindings)
    )
    return gin.query_parameter('%LORA').scoped_configurable_fn()

  with gin.unlock_config():
    gin.clear_config()
    yield read
    gin.clear_config()


_dense = functools.cache(encoder_decoder.dense_module_paths)


def _adapted(preset, config):
  return lora.resolve(preset, _dense(config)).module_paths


def _layers(config, attention, mlp):
  """Spells out the layers of both stacks."""
  projections = ('query', 'key', 'value', 'out') if attention else ()
  gated = len(config.mlp_activations) > 1
  inner = ('wi_0', 'wi_1') if gated else ('wi',)
  stacks = {
    'encoder': (('attention',), config.num_encoder_layers),
    'decoder': (
      ('self_attention', 'encoder_decoder_attention'),
      config.num_decoder_layers,
    ),
  }
  names = set()
  for stack, (blocks, count) in stacks.items():
    layers = ['layers']
    if not config.scan_layers:
      layers = [f'layers_{index}' for index in range(count)]
    for layer in layers:
      for block in blocks:
        names |= {f'{stack}/{layer}/{block}/{each}' for each in projections}
      if mlp:
        names |= {f'{stack}/{layer}/mlp/{each}' for each in (*inner, 'wo')}
  return names


EXPECTED = {
  'attention': lambda config: _layers(config, True, False),
  'mlp': lambda config: _layers(config, False, True),
  'all_linear': lambda config: _layers(config, True, True),
  'decoder': lambda config: {
    name for name in _layers(config, True, True) if name.startswith('decoder/')
  },
}


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize(
  'config', [PLAIN, GATED, tiny_pali.CONFIG], ids=['wi', 'gated', 'pali']
)
@pytest.mark.parametrize('name', EXPECTED)
def test_a_preset_adapts_its_layers(name, config, scan_layers, preset):
  config = dataclasses.replace(config, scan_layers=scan_layers)
  assert _adapted(preset(name), config) == EXPECTED[name](config)


@pytest.mark.parametrize('name', ['all_linear', 'mlp'])
def test_the_head_says_how_many(name, preset):
  head = (FOLDER / f'{name}.gin').read_text().split('\nfrom ')[0]
  told = re.search(r'T5 1\.1 small gets (\d+)\s+adapters', head)
  assert int(told[1]) == len(_adapted(preset(name), SMALL))


@pytest.mark.parametrize('rank', [1, 4, 32])
@pytest.mark.parametrize('name', EXPECTED)
def test_one_flag_fixes_alpha_for_every_rank(name, rank, preset):
  fixed = preset(name, f'LORA_RANK = {rank}', 'LORA_ALPHA = 32')
  assert (fixed.rank, fixed.scale) == (rank, 32 / rank)
  gin.clear_config()
  assert preset(name, f'LORA_RANK = {rank}').scale == 1.0
