"""Describes the directory of a Hugging Face SigLIP image tower to write."""

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
    params: unrolled and unboxed parameters; see `hf_output.contents`.
    config: configuration of the ViT.
    dtype: 'float32' or 'bfloat16', to which weights are rounded.
    fetch: called with a parameter's path and leaf; returns an array in this
      host's memory.

  Raises:
    CheckpointError: `params` do not match `config`.
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
        # transformers 4 needs the prefix, and 5 accepts it.
        siglip.PREFIX + entry.tensor: tensor(entry)
        for entry in table
      }
    },
  )
