"""Hugging Face directories of T5, as a format."""

from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf


class HuggingFace(format_lib.WeightsFormat):
  """See `interop.hf`."""

  name = 'hf'
  title = 'a Hugging Face T5 directory'

  def recognises(self, path):
    """See `format`."""
    return hf.is_hf_directory(path)

  def load_config(self, path):
    """See `format`."""
    return hf.load_config(path)

  def load_params(self, path, config, put):
    """See `format`."""
    return hf.load_params(path, config, put)

  def load_vocabulary(self, path):
    """See `format`."""
    return vocabularies.load_from_hf_directory(path)

  def local_directory(self, path):
    """See `format`."""
    return hf.local_directory(path)
