"""The format of directories of a PaLI's parts."""

from etils import epath

from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import pali_directory


class Pali(format_lib.WeightsFormat):
  """See `interop.pali_directory`; the format `hf` writes it."""

  name = 'pali'
  title = "a directory of a PaLI's parts"

  def recognises(self, path):
    """See `format`."""
    return pali_directory.is_pali_directory(path)

  def load_config(self, path):
    """See `format`."""
    return pali_directory.load_config(path)

  def load_params(self, path, config, put):
    """See `format`."""
    return pali_directory.load_params(path, config, put)

  def load_vocabulary(self, path):
    """See `format`."""
    text = hf.local_directory(epath.Path(path) / pali_directory.T5)
    return vocabularies.load_from_hf_directory(str(text))
