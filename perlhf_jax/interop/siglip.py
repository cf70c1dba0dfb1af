"""Reads the image tower of a Hugging Face SigLIP, without transformers.

Such a directory holds `config.json` and `model.safetensors`, or shards and
`model.safetensors.index.json`, of a `SiglipVisionModel` or of a whole
`SiglipModel` (SigLIP, and SigLIP 2 at a fixed resolution). Only the weights
that compute image tokens are read, not the text tower or the pooling head.

Parameters have big_vision's names, with attention kernels `[in, out]`: heads
are folded, as everywhere in this package. Weights are mapped from local disk,
so remote directories are copied first.
"""

from collections.abc import Callable, Iterator, Mapping
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_match
from perlhf_jax.interop import remote_files
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import stored
from perlhf_jax.models import vit_config

WHOLE = 'siglip'
VISION = 'siglip_vision_model'
MODEL_TYPES = (WHOLE, VISION)

# Maps fields of ViTConfig to keys of `config.json`, with the defaults of
# `transformers`: directories on the hub omit values that equal the base
# model's.
_SIZES = {
  'image_size': ('image_size', 224),
  'patch_size': ('patch_size', 16),
  'width': ('hidden_size', 768),
  'depth': ('num_hidden_layers', 12),
  'mlp_dim': ('intermediate_size', 3072),
  'num_heads': ('num_attention_heads', 12),
}
# Settings that our ViT cannot vary. The first value is the default; 'gelu_new'
# is another name of it.
_FIXED = {
  'num_channels': (3,),
  'layer_norm_eps': (1e-6,),
  'hidden_act': ('gelu_pytorch_tanh', 'gelu_new'),
}

# Prefix of tensor names in whole models, and in all models of transformers 4;
# image towers of transformers 5 do not have it.
PREFIX = 'vision_model.'
_HEAD = 'head.'
_OF_WHOLE_MODELS = ('text_model.', 'logit_scale', 'logit_bias')

_CONTENTS = (
  'a Hugging Face SigLIP directory holds config.json and model.safetensors (or '
  'model.safetensors.index.json and its shards)'
)


class Entry(NamedTuple):
  """One parameter in both formats.

  Attributes:
    path: path of the parameter, such as 'Transformer/encoder_norm/scale'.
    tensor: name of the tensor, without a prefix.
    tensor_shape: shape of the tensor.
    convert: converts the tensor to the parameter.
    invert: converts the parameter to the tensor.
  """

  path: str
  tensor: str
  tensor_shape: tuple[int, ...]
  convert: Callable[[np.ndarray], np.ndarray] = np.asarray
  invert: Callable[[np.ndarray], np.ndarray] = np.asarray

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the parameter."""
    # A broadcast scalar, which takes no memory.
    return self.convert(np.broadcast_to(0.0, self.tensor_shape)).shape


def is_siglip_directory(path: str | os.PathLike[str]) -> bool:
  """Whether the `config.json` of a directory says that it is a SigLIP.

  It may be incomplete: the functions below report missing files.

  Args:
    path: local or remote, such as `gs://bucket/siglip-so400m-patch14-224`.

  Raises:
    CheckpointError: a remote directory cannot be reached, or `config.json` is
      damaged.
  """
  with remote_files.explained(path):
    file = epath.Path(path) / hf.CONFIG
    if not file.exists():
      return False
    return safetensors_files.read_json(file).get('model_type') in MODEL_TYPES


def load_config(path: str | os.PathLike[str]) -> vit_config.ViTConfig:
  """Reads the architecture of the image tower of a SigLIP directory.

  Args:
    path: local or remote.

  Returns:
    A config whose `image_size` is the size that whole patches cover: 378 for
    the SigLIP of 384 pixels with patches of 14, which ignores 6 pixels.

  Raises:
    CheckpointError: `config.json` is missing, or the model is not a SigLIP with
      a supported image tower.
  """
  with remote_files.explained(path):
    directory = epath.Path(path)
    _check_complete(directory, (hf.CONFIG,))
    raw = safetensors_files.read_json(directory / hf.CONFIG)
  return _to_vit_config(raw, str(directory / hf.CONFIG))


def load_params(
  path: str | os.PathLike[str],
  config: vit_config.ViTConfig,
  put: Callable[[str, Any], Any] = stored.read,
) -> dict[str, Any]:
  """Reads the weights of an image tower, one tensor at a time.

  Args:
    path: local or remote; a remote directory is read from its
      `hf.local_directory`.
    config: configuration of the tower to fill; its sizes and resolution must
      match the directory.
    put: as in `hf.load_params`.

  Returns:
    Nested dict with big_vision's names and unrolled blocks.

  Raises:
    CheckpointError: weights are missing, damaged, or of another architecture or
      shape; every tensor of the image tower must be used and every parameter
      filled.
  """
  with remote_files.explained(path):
    _check_complete(epath.Path(path), (hf.CONFIG,))
    _check_complete(
      epath.Path(path), (safetensors_files.SINGLE, safetensors_files.INDEX)
    )
  directory = hf.local_directory(path)
  _check_architecture(config, directory)
  table = entries(config)
  reader = safetensors_files.Reader(directory)
  sources = _match(table, reader.shapes(), directory)
  arrays = {
    entry.path: reader.stored(sources[entry], entry.shape, entry.convert)
    for entry in table
  }
  return tree_paths.unflatten(
    {path: put(path, array) for path, array in arrays.items()}
  )


def entries(config: vit_config.ViTConfig) -> tuple[Entry, ...]:
  """Returns every parameter of an image tower."""
  width, patch = config.width, config.patch_size
  table = [
    Entry(
      'embedding/kernel',
      'embeddings.patch_embedding.weight',
      (width, 3, patch, patch),
      lambda tensor: tensor.transpose(2, 3, 1, 0),
      lambda kernel: kernel.transpose(3, 2, 0, 1),
    ),
    Entry('embedding/bias', 'embeddings.patch_embedding.bias', (width,)),
    Entry(
      'pos_embedding',
      'embeddings.position_embedding.weight',
      (config.num_tokens, width),
      lambda tensor: tensor[None],
      lambda positions: positions[0],
    ),
    *_norm(config, 'Transformer/encoder_norm', 'post_layernorm'),
  ]
  for index in range(config.depth):
    table.extend(
      _block(
        config,
        f'Transformer/encoderblock_{index}',
        f'encoder.layers.{index}',
      )
    )
  return tuple(table)


def _block(
  config: vit_config.ViTConfig, path: str, tensor: str
) -> Iterator[Entry]:
  width, mlp_dim = config.width, config.mlp_dim
  for index in range(2):
    yield from _norm(
      config, f'{path}/LayerNorm_{index}', f'{tensor}.layer_norm{index + 1}'
    )
  for name, hf_name in (
    ('query', 'q_proj'),
    ('key', 'k_proj'),
    ('value', 'v_proj'),
    ('out', 'out_proj'),
  ):
    yield from _dense(
      f'{path}/MultiHeadDotProductAttention_0/{name}',
      f'{tensor}.self_attn.{hf_name}',
      (width, width),
    )
  for index, shape in enumerate(((width, mlp_dim), (mlp_dim, width))):
    yield from _dense(
      f'{path}/MlpBlock_0/Dense_{index}', f'{tensor}.mlp.fc{index + 1}', shape
    )


def _norm(
  config: vit_config.ViTConfig, path: str, tensor: str
) -> Iterator[Entry]:
  yield Entry(f'{path}/scale', f'{tensor}.weight', (config.width,))
  yield Entry(f'{path}/bias', f'{tensor}.bias', (config.width,))


def _dense(path: str, tensor: str, shape: tuple[int, int]) -> Iterator[Entry]:
  yield Entry(
    f'{path}/kernel',
    f'{tensor}.weight',
    shape[::-1],
    np.transpose,
    np.transpose,
  )
  yield Entry(f'{path}/bias', f'{tensor}.bias', shape[1:])


def _match(
  table: tuple[Entry, ...],
  shapes: Mapping[str, tuple[int, ...]],
  directory: epath.Path,
) -> dict[Entry, str]:
  """Chooses the tensor to read for each parameter."""
  prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) else ''
  sources = {entry: prefix + entry.tensor for entry in table}
  unused = (prefix + _HEAD, *_OF_WHOLE_MODELS)
  found = {name for name in shapes if not name.startswith(unused)}
  hf_match.check_names(
    expected=set(sources.values()),
    found=found,
    what=(
      f'{directory} does not hold the image tower that its {hf.CONFIG} '
      'describes'
    ),
    kind='tensors',
    whole='SigLIP',
  )
  for entry, name in sources.items():
    hf_match.check_shape(
      f'{directory}: tensor {name}',
      shapes[name],
      entry.tensor_shape,
      hf.CONFIG,
    )
  return sources


def _to_vit_config(raw: Mapping[str, Any], source: str) -> vit_config.ViTConfig:
  model_type = raw.get('model_type')
  if model_type not in MODEL_TYPES:
    raise errors.CheckpointError(
      f'{source}: model_type is {checks.shown(model_type)}; supported are '
      f'{", ".join(MODEL_TYPES)} (SigLIP, and SigLIP 2 at a fixed resolution; '
      'not its NaFlex models).'
    )
  if model_type == WHOLE:
    raw = raw.get('vision_config')
    if not isinstance(raw, Mapping):
      raise errors.CheckpointError(
        f'{source} has no vision_config, though model_type is {WHOLE!r}. Take '
        'the file that belongs to the weights.'
      )
  sizes = {
    field: raw.get(key, default) for field, (key, default) in _SIZES.items()
  }
  wrong = [
    key for field, (key, _) in _SIZES.items() if not _is_size(sizes[field])
  ]
  if wrong:
    raise errors.CheckpointError(
      f'{source}: no positive whole number under {", ".join(wrong)}. Take the '
      'file that belongs to the weights.'
    )
  for key, supported in _FIXED.items():
    value = raw.get(key, supported[0])
    if value not in supported:
      raise errors.CheckpointError(
        f'{source}: {key} is {checks.shown(value)}; only {supported[0]!r}, '
        'the value of every published SigLIP, is supported.'
      )
  if sizes['width'] % sizes['num_heads']:
    raise errors.CheckpointError(
      f'{source}: hidden_size is {sizes["width"]}, which is not a multiple of '
      f'num_attention_heads, {sizes["num_heads"]}. Take the file that belongs '
      'to the weights.'
    )
  remainder = sizes['image_size'] % sizes['patch_size']
  if remainder == sizes['image_size']:
    raise errors.CheckpointError(
      f'{source}: image_size is {sizes["image_size"]}, less than patch_size, '
      f'{sizes["patch_size"]}. Take the file that belongs to the weights.'
    )
  sizes['image_size'] -= remainder
  with schemas.blamed_on(
    source,
    errors.CheckpointError,
    'Take the file that belongs to the weights.',
  ):
    return vit_config.ViTConfig(**sizes)


def from_vit_config(config: vit_config.ViTConfig) -> dict[str, Any]:
  """Makes the contents of the `config.json` of an image tower.

  Args:
    config: configuration of the tower.
  """
  sizes = {key: getattr(config, field) for field, (key, _) in _SIZES.items()}
  fixed = {key: supported[0] for key, supported in _FIXED.items()}
  return {
    'architectures': ['SiglipVisionModel'],
    'model_type': VISION,
    # The head pools tokens, but PaLI uses all of them.
    'vision_use_head': False,
    **sizes,
    **fixed,
  }


def _is_size(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_architecture(
  config: vit_config.ViTConfig, directory: epath.Path
) -> None:
  stored = load_config(directory)
  different = [
    f'{name} is {getattr(stored, name)} in the file and '
    f'{getattr(config, name)} in the configuration'
    for name in _SIZES
    if getattr(stored, name) != getattr(config, name)
  ]
  if different:
    raise errors.CheckpointError(
      f'{directory / hf.CONFIG} describes another image tower than the '
      f'configuration: {"; ".join(different)}. Use the sizes of the '
      'checkpoint, or another checkpoint.'
    )


def _check_complete(directory: epath.Path, names: tuple[str, ...]) -> None:
  """Raises a `CheckpointError` unless one of `names` is there."""
  if not directory.is_dir():
    raise errors.CheckpointError(
      f'There is no directory {directory}; {_CONTENTS}. A model of the hub '
      'must be downloaded first, for example with "hf download NAME '
      '--local-dir DIR".'
    )
  if not any((directory / name).exists() for name in names):
    what = hf.CONFIG if hf.CONFIG in names else 'weights'
    raise errors.CheckpointError(
      f'{directory} has no {what}; {_CONTENTS}. Copy or download what is '
      'missing; weights of another format are converted by "from_pretrained" '
      'and "save_pretrained" of transformers.'
    )
