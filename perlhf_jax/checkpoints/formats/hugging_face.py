"""The format of Hugging Face T5 directories."""

import dataclasses

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.interop import pali_directory
from perlhf_jax.interop import reward_directory
from perlhf_jax.interop import reward_head
from perlhf_jax.models import pali_config
from perlhf_jax.training import layer_layout


class HuggingFace(format_lib.WeightsFormat, format_lib.WritableFormat):
  """See `interop.hf`.

  A PaLI is written as a directory of its parts, which the format `pali` reads.
  A reward model is written with its head.
  """

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

  def peek(self, path):
    """See `format`."""
    peeked = super().peek(path)
    if not reward_head.is_there(path):
      return peeked
    return dataclasses.replace(peeked, kind=run_metadata.REWARD)

  def read(self, peeked, put):
    """See `format`."""
    loaded = super().read(peeked, put)
    if not loaded.is_reward_model:
      return loaded
    heads = reward_head.load(loaded.path, loaded.config)
    return dataclasses.replace(loaded, heads=heads)

  def write(self, loaded, target, options):
    """See `format`."""
    make, heads = hf_output.contents, ()
    if loaded.is_reward_model:
      make, heads = reward_directory.contents, (loaded.heads,)
    elif isinstance(loaded.config, pali_config.PaliConfig):
      make = pali_directory.contents
    params = layer_layout.to_layout(loaded.params, scan_layers=False)
    contents = make(
      params,
      *heads,
      loaded.config,
      vocabulary=vocabularies.to_dict(loaded.vocabulary),
      dtype=options.dtype_of(params),
      fetch=format_lib.fetch,
    )
    output.write(contents, target, overwrite=options.overwrite)
