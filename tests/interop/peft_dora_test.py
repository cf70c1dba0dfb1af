"""DoRA in directories of PEFT, written by hand."""

import json

import hf_directories
import ml_dtypes
import numpy as np
import peft_directories
import pytest
from safetensors import numpy as safetensors_numpy
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import output
from perlhf_jax.interop import peft
from perlhf_jax.models import lora as lora_lib

GOLDEN = hf_directories.GOLDEN
BASE = GOLDEN / 'hf_t5_v1_1'


def test_dora_is_what_peft_computes(tmp_path):
  """PEFT: magnitude / ||W + scaling·B·A|| per row of W, [out, in]."""
  config = hf.load_config(BASE)
  params = hf.load_params(BASE, config)
  rng = np.random.default_rng(0)

  def with_magnitudes(tensors):
    for name in [name for name in tensors if 'lora_B' in name]:
      module = name.removesuffix('.lora_B.weight')
      tensors[f'{module}.lora_magnitude_vector'] = rng.uniform(
        0.5, 2, len(tensors[name])
      ).astype(np.float32)

  source = peft_directories.edit(
    tmp_path / 'x', edit_tensors=with_magnitudes, use_dora=True
  )
  adapter = peft.load(source, config)
  assert adapter.config.dora
  merged = lora_lib.merge_lora(params, adapter.lora, adapter.config)
  tensors = safetensors_numpy.load_file(source / peft.WEIGHTS)
  for module, layer in (
    (
      'decoder.block.0.layer.1.EncDecAttention.q',
      'decoder/layers_0/encoder_decoder_attention/query',
    ),
    (
      'encoder.block.1.layer.0.SelfAttention.v',
      'encoder/layers_1/attention/value',
    ),
  ):
    a, b, magnitude = (
      np.float64(tensors[f'base_model.model.{module}.lora_{end}'])
      for end in ('A.weight', 'B.weight', 'magnitude_vector')
    )
    weight = np.float64(tree_paths.flatten(params)[f'{layer}/kernel']).T
    weight = weight + 8 / 4 * b @ a
    weight *= (magnitude / np.linalg.norm(weight, axis=1))[:, None]
    np.testing.assert_allclose(
      tree_paths.flatten(merged)[f'{layer}/kernel'], weight.T, atol=1e-5
    )
  # Written as it was read.
  contents = peft.contents(adapter.lora, adapter.config, config, base='DIR')
  output.write(contents, tmp_path / 'y')
  written = safetensors_numpy.load_file(tmp_path / 'y' / peft.WEIGHTS)
  assert sorted(written) == sorted(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(written[name], tensor)


def test_magnitudes_stay_exact_in_bfloat16(tmp_path):
  config = hf.load_config(BASE)
  lora_config = lora_lib.LoraConfig(rank=3, dora=True)
  _, adapters = tiny_models.adapted(lora_config, config)
  contents = peft.contents(
    adapters, lora_config, config, base='DIR', dtype='bfloat16'
  )
  output.write(contents, tmp_path)
  raw = (tmp_path / peft.WEIGHTS).read_bytes()
  header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], 'little')])
  del header['__metadata__']
  for name, entry in header.items():
    is_length = name.endswith('lora_magnitude_vector')
    assert entry['dtype'] == ('F32' if is_length else 'BF16')
    # Each begins at a multiple of its size.
    assert entry['data_offsets'][0] % (4 if is_length else 2) == 0
  again = tree_paths.flatten(peft.load(tmp_path, config).lora)
  for path, leaf in tree_paths.flatten(adapters).items():
    if not path.endswith('lora_m'):
      leaf = leaf.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)


def test_dora_without_magnitudes_and_magnitudes_without_dora(tmp_path):
  config = hf.load_config(BASE)
  path = peft_directories.edit(tmp_path / 'x', use_dora=True)
  with pytest.raises(errors.CheckpointError, match='lora_magnitude_vector'):
    peft.load(path, config)

  def with_one(tensors):
    module = 'base_model.model.encoder.block.0.layer.0.SelfAttention.q'
    tensors[f'{module}.lora_magnitude_vector'] = np.ones(24, np.float32)

  path = peft_directories.edit(tmp_path / 'y', edit_tensors=with_one)
  with pytest.raises(errors.CheckpointError, match='lora_magnitude_vector'):
    peft.load(path, config)
