"""The format of T5X checkpoints."""

from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.core import errors
from perlhf_jax.interop import t5x
from perlhf_jax.models import pali_config
from perlhf_jax.training import layer_layout


class T5x(format_lib.WeightsFormat, format_lib.WritableFormat):
  """See `interop.t5x`. They hold no vocabulary."""

  name = 't5x'
  title = 'a T5X checkpoint'

  def recognises(self, path):
    """See `format`."""
    return t5x.is_t5x_checkpoint(path)

  def load_config(self, path):
    """See `format`."""
    return t5x.load_config(path)

  def load_params(self, path, config, put):
    """See `format`."""
    return t5x.load_params(path, config, put)

  def load_vocabulary(self, path):
    """See `format`."""
    del path

  def write(self, loaded, target, options):
    """See `format`."""
    if loaded.is_reward_model or isinstance(
      loaded.config, pali_config.PaliConfig
    ):
      what = 'head' if loaded.is_reward_model else 'ViT'
      raise errors.CheckpointError(
        f'{loaded.path} is {loaded}; the T5X format cannot hold its {what}. '
        'Write it as a Hugging Face directory (--to=hf).'
      )
    options.check_new('T5X checkpoints')
    params = layer_layout.to_layout(loaded.params, scan_layers=False)
    t5x.save(
      params,
      loaded.config,
      target,
      step=loaded.step,
      dtype=options.dtype_of(params),
      fetch=format_lib.fetch,
    )
