"""PEFT directories of adapters, as a format."""

import os

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.core import errors
from perlhf_jax.interop import hf
from perlhf_jax.interop import output
from perlhf_jax.interop import peft


class Peft(format_lib.ModelFormat, format_lib.WritableFormat):
  """See `interop.peft`. The base is a Hugging Face directory."""

  name = 'peft'
  title = 'a PEFT directory of adapters'
  keeps_adapters = True

  def recognises(self, path):
    """See `format`."""
    return peft.is_peft_directory(path)

  def peek(self, path):
    """See `format`."""
    base = _base(path)
    adapter = peft.load(path, hf.load_config(base))
    return self._loaded(path, adapter)

  def load(self, path, mesh):
    """See `format`."""
    del mesh
    base = _base(path)
    adapter = peft.load(path, hf.load_config(base))
    return self._loaded(path, adapter, lora=adapter.lora, heads=adapter.heads)

  def _loaded(self, path, adapter, **weights):
    return loaded_model.LoadedModel(
      config=None,
      path=os.fspath(path),
      source=self.title,
      lora_config=adapter.config,
      kind=run_metadata.REWARD if adapter.heads else None,
      base={'path': _base(path)},
      **weights,
    )

  def write(self, loaded, target, options):
    """See `format`."""
    if loaded.lora is None:
      raise errors.CheckpointError(
        f'{loaded.path} has no adapters; write it as a Hugging Face directory '
        '(--to=hf).'
      )
    base = options.base or loaded.base['path']
    if not hf.is_hf_directory(base):
      raise errors.CheckpointError(
        f'The adapters stand on {base}, which is no Hugging Face directory, '
        'and PEFT needs one. Write that first (perlhf convert --to=hf '
        f'--source={base} --target=DIR), and give --base=DIR.'
      )
    contents = peft.contents(
      loaded.lora,
      loaded.lora_config,
      loaded.config,
      base=base,
      heads=loaded.heads or None,
      tuned=loaded.tuned or None,
      dtype=options.dtype_of(loaded.lora),
    )
    output.write(contents, target, overwrite=options.overwrite)


def _base(path) -> str:
  """Returns the directory of the base that an adapter names."""
  base = peft.base_of(path)
  if base is None or not hf.is_hf_directory(base):
    raise errors.CheckpointError(
      f'{os.fspath(path)} stands on {base}, which is no Hugging Face directory '
      'here. Write the path of its base under base_model_name_or_path in '
      f'{peft.CONFIG}.'
    )
  return base
