"""The format of PEFT adapter directories."""

import dataclasses
import os

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.core import errors
from perlhf_jax.interop import hf
from perlhf_jax.interop import output
from perlhf_jax.interop import peft
from perlhf_jax.interop import reward_head


class Peft(format_lib.AdapterFormat, format_lib.WritableFormat):
  """See `interop.peft`. The base of written adapters is a Hugging Face T5."""

  name = 'peft'
  title = 'a PEFT directory of adapters'
  keeps_adapters = True

  def recognises(self, path):
    """See `format`."""
    return peft.is_peft_directory(path)

  def peek(self, path):
    """See `format`."""
    return loaded_model.LoadedModel(
      config=None,
      path=os.fspath(path),
      source=self.title,
      kind=run_metadata.REWARD if reward_head.is_there(path) else None,
      base={'path': peft.base_of(path) or ''},
    )

  def on_base(self, peeked, base):
    """See `format`."""
    adapter = peft.load(peeked.path, base.config)
    return dataclasses.replace(
      peeked,
      config=base.config,
      vocabulary=base.vocabulary,
      lora_config=adapter.config,
    )

  def load(self, peeked, mesh):
    """See `format`."""
    del mesh
    adapter = peft.load(peeked.path, peeked.config)
    return dataclasses.replace(peeked, lora=adapter.lora, heads=adapter.heads)

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
        f'The adapters stand on {base}, which is not a Hugging Face directory, '
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
