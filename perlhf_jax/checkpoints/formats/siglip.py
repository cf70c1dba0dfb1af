"""The format of SigLIP directories, whose ViT can be added to a T5."""

from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.interop import siglip


class Siglip(format_lib.VitFormat):
  """See `interop.siglip`."""

  name = 'siglip'
  title = 'a Hugging Face SigLIP directory'

  def recognises(self, path):
    """See `format`."""
    return siglip.is_siglip_directory(path)

  def load_config(self, path):
    """See `format`."""
    return siglip.load_config(path)

  def load_params(self, path, config, put):
    """See `format`."""
    return siglip.load_params(path, config, put)
