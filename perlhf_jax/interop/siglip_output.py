"""A Hugging Face SigLIP image tower to be written."""

from perlhf_jax.core import typing
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.interop import siglip
from perlhf_jax.models import vit_config


def contents(
  params: typing.Params,
  config: vit_config.ViTConfig,
  *,
  dtype: str = 'float32',
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the directory of a ViT, as `interop.siglip` reads it.

  Args:
    params: unrolled and unboxed; see `hf_output.contents`.
    config: of the ViT.
    dtype: 'float32' or 'bfloat16', to which weights are rounded.
    fetch: of a parameter's path and leaf, makes an array of this host's memory.

  Raises:
    CheckpointError: `params` are not those of `config`.
  """
  table = siglip.entries(config)
  flat = hf_output.check_params(
    params, {entry.path: entry.shape for entry in table}, 'ViTConfig'
  )

  def tensor(entry: siglip.Entry) -> safetensors_output.Tensor:
    return safetensors_output.Tensor(
      entry.tensor_shape,
      output.DTYPES[dtype],
      lambda: entry.invert(fetch(entry.path, flat[entry.path])),
    )

  raw = {**siglip.from_vit_config(config), 'torch_dtype': dtype}
  return output.Contents(
    {hf.CONFIG: hf_output.to_json(raw)},
    {
      safetensors_files.SINGLE: {
        # transformers 4 needs the prefix, and 5 takes it.
        siglip.PREFIX + entry.tensor: tensor(entry)
        for entry in table
      }
    },
  )
