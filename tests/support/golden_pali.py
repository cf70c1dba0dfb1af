"""The golden PaLI as a directory of its parts."""

import pathlib
import shutil

import numpy as np
from safetensors import numpy as safetensors

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def copy(folder):
  """Puts the golden parts and their projection together; returns the folder."""
  shutil.copytree(_GOLDEN / 'hf_pali', folder)
  with np.load(_GOLDEN / 'hf_pali.npz') as arrays:
    projection = {
      name: arrays[f'projection_{name}'] for name in ('weight', 'bias')
    }
  safetensors.save_file(projection, folder / 'image_projection.safetensors')
  return folder
