"""Reads and writes PEFT directories of LoRA on a T5, without torch or PEFT.

Such a directory holds `adapter_config.json` and `adapter_model.safetensors`. A
reward model's head is in a separate file (`reward_head`), which PEFT ignores.
The base model is another Hugging Face directory.

PEFT stores `A` as `[rank, in]` and `B` as `[out, rank]`, the transposes of our
arrays. DoRA's magnitudes, `[out]`, are `lora_magnitude_vector`.
"""

from collections.abc import Iterator, Mapping
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import named_tensors
from perlhf_jax.interop import output
from perlhf_jax.interop import peft_config
from perlhf_jax.interop import readmes
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import reward_head
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import safetensors_output
from perlhf_jax.models import dora
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PICKLED = 'adapter_model.bin'
_PREFIX = 'base_model.model.'


class Adapter(NamedTuple):
  """Adapters of a PEFT directory.

  Attributes:
    config: rank, scale and adapted modules.
    lora: unrolled tree of the collection `lora`, numpy arrays in float32.
    heads: `{'score': …}` for a reward model, else empty.
    base: directory of the base model or its name on the hub, as given in the
      file; None if absent.
  """

  config: lora_lib.LoraConfig
  lora: dict[str, Any]
  heads: dict[str, Any]
  base: str | None


def is_peft_directory(path: str | os.PathLike[str]) -> bool:
  """Whether a directory, local or remote, has a file of a PEFT adapter.

  It may be incomplete: the functions below report missing files.

  Raises:
    CheckpointError: a remote directory cannot be reached.
  """
  with remote_files.explained(path):
    directory = epath.Path(path)
    return any(
      (directory / name).exists() for name in (CONFIG, WEIGHTS, _PICKLED)
    )


def base_of(path: str | os.PathLike[str]) -> str | None:
  """Returns the base model that a directory names; None if it names none.

  Raises:
    CheckpointError: `adapter_config.json` is missing or damaged.
  """
  base = _read_config(path).get('base_model_name_or_path')
  return base if isinstance(base, str) and base else None


def load(path: str | os.PathLike[str], config: t5_config.T5Config) -> Adapter:
  """Reads adapters.

  Modules can differ in rank or scale (`rank_pattern`, `alpha_pattern`). Here
  all get the highest rank, filled with zeros, which gradients keep zero. All
  get one scale, and `B` is multiplied to correct for it.

  Args:
    path: path of the directory, local or remote.
    config: configuration of the base model, in any layout.

  Raises:
    CheckpointError: a file is missing or damaged, the adapter computes
      something that our adapters do not, or it does not match the base: every
      tensor must be used and every adapter filled.
  """
  raw = _read_config(path)
  source = str(epath.Path(path) / CONFIG)
  lora_config, adapted = peft_config.from_json(raw, config, source)
  table = peft_config.modules(config)
  _check_weights(path)
  tensors = named_tensors.read(
    path,
    WEIGHTS,
    dict(
      _shapes(
        table,
        {name: module.rank for name, module in adapted.items()},
        lora_config,
      )
    ),
    source=f'{CONFIG} and its base',
    whole='adapter and the base that it was trained on',
  )
  flat = {}
  for name, module in adapted.items():
    a, b, *m = (tensors[key].T for key in _names(name, lora_config))
    missing = lora_config.rank - module.rank
    correction = np.float32(module.scale / lora_config.scale)
    place = _place(table[name].path)
    flat[f'{place}/lora_a'] = np.pad(a, ((0, 0), (0, missing)))
    flat[f'{place}/lora_b'] = np.pad(b * correction, ((0, missing), (0, 0)))
    if m:
      flat[f'{place}/{dora.MAGNITUDE}'] = m[0]
  return Adapter(
    lora_config,
    tree_paths.unflatten(flat),
    reward_head.load(path, config) if reward_head.is_there(path) else {},
    base_of(path),
  )


def contents(
  lora: typing.Params,
  lora_config: lora_lib.LoraConfig,
  config: t5_config.T5Config,
  *,
  base: str,
  heads: Mapping[str, Any] | None = None,
  tuned: Mapping[str, Any] | None = None,
  dtype: str = 'float32',
  fetch: output.Fetch = output.as_numpy,
) -> output.Contents:
  """Describes the directory of adapters.

  Args:
    lora: unrolled and unboxed tree of the collection `lora`; leaves as in
      `hf_output.contents`.
    lora_config: rank, scale and adapted modules.
    config: configuration of the base model.
    base: Hugging Face directory of the base, or its name on the hub.
    heads: heads of a reward model.
    tuned: parameters that were trained in full beside the adapters, which this
      format cannot hold.
    dtype: 'float32' or 'bfloat16', to which adapters are rounded, but for
      DoRA's magnitudes: rounded, they would change whole weights.
    fetch: called with a path and its leaf; returns an array in this host's
      memory.

  Raises:
    CheckpointError: parameters were trained in full, or adapters are outside
      the T5 or do not match the configurations.
  """
  if tuned:
    names = safetensors_files.first(list(tree_paths.flatten(tuned)))
    raise errors.CheckpointError(
      f'{names} were trained in full besides the adapters, but a PEFT '
      'directory of a T5 holds only adapters. Write the merged model instead.'
    )
  if heads and config.image_size is not None:
    raise errors.CheckpointError(
      'PEFT cannot load a PaLI as a base, so a PEFT directory could not tell '
      'how to use this reward model. Write the merged model instead.'
    )
  table = peft_config.modules(config)
  flat = tree_paths.flatten(lora)
  by_place = {_place(entry.path): name for name, entry in table.items()}
  places = sorted({path.rpartition('/')[0] for path in flat})
  others = [place for place in places if place not in by_place]
  if others:
    raise errors.CheckpointError(
      f'{safetensors_files.first(others)} do not adapt layers of a T5, and '
      'PEFT adapts one model at a time. Write the merged model instead.'
    )
  # In the order of the layers, as in PEFT's files.
  adapted = [name for name in table if _place(table[name].path) in places]
  if not adapted:
    raise errors.CheckpointError(
      'There are no adapters to write as a PEFT directory; write the model '
      'itself.'
    )
  shapes = dict(
    _shapes(table, dict.fromkeys(adapted, lora_config.rank), lora_config)
  )
  tensors = {}
  expected = {}
  for name in adapted:
    leaves = 'lora_a', 'lora_b', dora.MAGNITUDE
    for key, leaf in zip(_names(name, lora_config), leaves, strict=False):
      path = f'{_place(table[name].path)}/{leaf}'
      expected[path] = shapes[key][::-1]
      tensors[key] = safetensors_output.Tensor(
        shapes[key],
        output.DTYPES['float32' if leaf == dora.MAGNITUDE else dtype],
        lambda path=path: fetch(path, flat[path]).T,
      )
  hf_output.check_params(lora, expected, 'LoraConfig and T5Config')
  raw = peft_config.to_json(lora_config, adapted, config, base)
  adapter = output.Contents(
    {CONFIG: hf_output.to_json(raw)},
    {WEIGHTS: safetensors_output.aligned(tensors)},
  )
  if not heads:
    return adapter
  readme = output.Contents(
    {readmes.FILE: readmes.reward(config, adapter=True)}, {}
  )
  return adapter | reward_head.contents(heads, config, fetch) | readme


def _place(kernel: str) -> str:
  return f'{kernel.removesuffix("/kernel")}/lora'


def _names(module: str, config: lora_lib.LoraConfig) -> tuple[str, ...]:
  """Returns the names of A, of B and, for DoRA, of the magnitudes."""
  ends = ['lora_A.weight', 'lora_B.weight']
  if config.dora:
    ends.append('lora_magnitude_vector')
  return tuple(f'{_PREFIX}{module}.{end}' for end in ends)


def _shapes(
  table: Mapping[str, Any],
  ranks: Mapping[str, int],
  config: lora_lib.LoraConfig,
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Yields each tensor's name and shape."""
  for name, rank in ranks.items():
    in_width, out_width = table[name].shape
    shapes = (rank, in_width), (out_width, rank), (out_width,)
    yield from zip(_names(name, config), shapes, strict=False)


def _read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  with remote_files.explained(path):
    directory = epath.Path(path)
    if not (directory / CONFIG).exists():
      raise errors.CheckpointError(
        f'{directory} has no {CONFIG}; a PEFT directory holds {CONFIG} and '
        f'{WEIGHTS}. Copy the missing file too.'
      )
    return safetensors_files.read_json(directory / CONFIG)


def _check_weights(path: str | os.PathLike[str]) -> None:
  with remote_files.explained(path):
    directory = epath.Path(path)
    if (directory / WEIGHTS).exists() or not (directory / _PICKLED).exists():
      return
  raise errors.CheckpointError(
    f'{directory} has its weights only as {_PICKLED}, which can run any code '
    'when it is read. Save the adapter again with PEFT (save_pretrained), '
    f'which writes {WEIGHTS}.'
  )
