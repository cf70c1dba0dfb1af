"""Edited copies of the golden Hugging Face directories."""

import json
import pathlib

from safetensors import numpy as safetensors_numpy

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TIED = GOLDEN / 'hf_t5_gated_tied'
UNTIED = GOLDEN / 'hf_t5_v1_1'
MT5 = GOLDEN / 'hf_t5_mt5'
UMT5 = GOLDEN / 'hf_t5_umt5'
BYTES = {'kind': 'byte', 'extra_ids': 125}
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# Of shape [12, 16] in both.
LAYER = 'encoder.block.1.layer.0.SelfAttention.q.weight'


def edit(source, target, edit_tensors=None, **config):
  """Copies a directory with one weights file, changing tensors and keys."""
  target.mkdir()
  raw = json.loads((source / 'config.json').read_text()) | config
  (target / 'config.json').write_text(json.dumps(raw))
  tensors = {}
  for file in source.glob('*.safetensors'):
    tensors |= safetensors_numpy.load_file(file)
  if edit_tensors is not None:
    tensors = edit_tensors(tensors)
  safetensors_numpy.save_file(tensors, target / WEIGHTS)
  return target
