"""Directories as PEFT writes them, with changes."""

import json
import pathlib
import shutil

from safetensors import numpy as safetensors_numpy

from perlhf_jax.interop import peft

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'hf_peft'


def edit(target, name='plain', edit_tensors=None, **keys):
  """Copies a directory of PEFT, changing tensors and keys."""
  shutil.copytree(_GOLDEN / name, target)
  file = target / peft.CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | keys))
  if edit_tensors is not None:
    tensors = safetensors_numpy.load_file(target / peft.WEIGHTS)
    edit_tensors(tensors)
    safetensors_numpy.save_file(tensors, target / peft.WEIGHTS)
  return target
