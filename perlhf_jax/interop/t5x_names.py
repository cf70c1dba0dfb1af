"""Maps T5X tensors to parameters of a T5, and infers a model from their shapes.

Our parameters have the names and shapes of T5X's minimal network. T5X's
scalable network, UMT5's, has the same tensors in another form: the layers of a
stack are on axis 1 of one tensor under `encoder/encoder` or `decoder/decoder`,
and attention kernels have separate axes for heads and head size. Either
difference is recognised separately, and so are position biases per layer.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import re
from typing import NamedTuple

from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.interop import hf_match
from perlhf_jax.models import t5_config

LAYER_AXIS = 1

_EMBEDDING = 'token_embedder/embedding'
_LOGITS = 'decoder/logits_dense/kernel'
_BIAS = 'relpos_bias/rel_embedding'
_STACKS = ('encoder', 'decoder')
_LAYER = re.compile(r'(encoder|decoder)/layers_(\d{1,9})/', re.ASCII)
# Activations of T5 1.0, and of T5 1.1 and later; shapes do not determine them.
_ACTIVATIONS = {False: ('relu',), True: ('gelu', 'linear')}
# Fields that shapes do not determine; of activations they determine the number.
_UNTOLD = ('mlp_activations', 'relative_attention_max_distance')
_MOST_LISTED = 10

_Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Form:
  """The form of a checkpoint's tensors.

  Attributes:
    scanned: whether the layers of a stack are one tensor.
    heads_apart: whether attention kernels have a separate axis for heads.
  """

  scanned: bool = False
  heads_apart: bool = False


class Source(NamedTuple):
  """One parameter and its tensor.

  Attributes:
    path: path of the parameter, such as 'encoder/layers_0/mlp/wi/kernel'.
    shape: shape of the parameter.
    tensor: name of the tensor.
    tensor_shape: shape of the tensor.
    layer: index on the tensor's layer axis; None if it has no such axis.
  """

  path: str
  shape: _Shape
  tensor: str
  tensor_shape: _Shape
  layer: int | None


def parameters(config: t5_config.T5Config) -> dict[str, _Shape]:
  """Returns every parameter's shape, by its path, with unrolled layers."""
  embed, joined = config.emb_dim, config.num_heads * config.head_dim
  bias = (config.num_heads, config.relative_attention_num_buckets)
  shapes = {_EMBEDDING: (config.vocab_size, embed)}
  if not config.logits_via_embedding:
    shapes[_LOGITS] = (embed, config.vocab_size)
  wi = ('wi_0', 'wi_1') if len(config.mlp_activations) > 1 else ('wi',)
  counts = (config.num_encoder_layers, config.num_decoder_layers)
  for stack, count in zip(_STACKS, counts, strict=True):
    shapes[f'{stack}/{stack}_norm/scale'] = (embed,)
    if not config.relpos_bias_per_layer:
      shapes[f'{stack}/{_BIAS}'] = bias
    attentions = {'attention': 'attention'}
    if stack == 'decoder':
      attentions = {
        'self_attention': 'self_attention',
        'encoder_decoder_attention': 'cross_attention',
      }
    for index in range(count):
      layer = f'{stack}/layers_{index}'
      if config.relpos_bias_per_layer:
        shapes[f'{layer}/{_BIAS}'] = bias
      for module, norm in (attentions | {'mlp': 'mlp'}).items():
        shapes[f'{layer}/pre_{norm}_layer_norm/scale'] = (embed,)
        if module == 'mlp':
          into, out, width = wi, 'wo', config.mlp_dim
        else:
          into, out, width = ('query', 'key', 'value'), 'out', joined
        for name in into:
          shapes[f'{layer}/{module}/{name}/kernel'] = (embed, width)
        shapes[f'{layer}/{module}/{out}/kernel'] = (width, embed)
  return shapes


def sources(
  config: t5_config.T5Config, form: Form = Form()
) -> tuple[Source, ...]:
  """Returns the source of each parameter; those of one tensor are adjacent."""
  found = [
    _source(config, form, path, shape)
    for path, shape in parameters(config).items()
  ]
  # The sort is stable, so layers stay in order.
  return tuple(sorted(found, key=lambda source: source.tensor))


def native_form(config: t5_config.T5Config) -> Form:
  """Returns the form of the T5X network that has this T5 by default."""
  scalable = config.relpos_bias_per_layer
  return Form(scanned=scalable, heads_apart=scalable)


def _source(
  config: t5_config.T5Config, form: Form, path: str, shape: _Shape
) -> Source:
  tensor, tensor_shape = path, shape
  if form.heads_apart and 'attention/' in path:
    heads = (config.num_heads, config.head_dim)
    out = path.endswith('/out/kernel')
    tensor_shape = (*heads, shape[1]) if out else (shape[0], *heads)
  match = _LAYER.match(path)
  if not (form.scanned and match):
    return Source(path, shape, tensor, tensor_shape, None)
  stack = match[1]
  return Source(
    path,
    shape,
    f'{stack}/{stack}/{path[match.end() :]}',
    (
      tensor_shape[0],
      getattr(config, f'num_{stack}_layers'),
      *tensor_shape[LAYER_AXIS:],
    ),
    int(match[2]),
  )


def infer(
  shapes: Mapping[str, _Shape], what: str
) -> tuple[t5_config.T5Config, Form]:
  """Infers a model from the names and shapes of its tensors.

  A gated MLP is assumed to be T5 1.1's ('gelu' and 'linear'), any other MLP T5
  1.0's ('relu'); position biases reach 128 tokens, as in every published T5.

  Args:
    shapes: shapes of all tensors, by name.
    what: the checkpoint, for messages.

  Returns:
    A config in float32 with unrolled layers, and the checkpoint's form. `check`
    tells whether every tensor matches.

  Raises:
    CheckpointError: a tensor that is needed to infer the model is missing, or
      does not have the axes of a T5's.
  """
  scanned = any(name.startswith('encoder/encoder/') for name in shapes)
  first = [f'{s}/{s}' if scanned else f'{s}/layers_0' for s in _STACKS]
  gated = f'{first[0]}/mlp/wi_0/kernel' in shapes
  per_layer = f'{first[0]}/{_BIAS}' in shapes
  query = f'{first[0]}/attention/query/kernel'
  wi = f'{first[0]}/mlp/{"wi_0" if gated else "wi"}/kernel'
  bias = f'{first[0] if per_layer else "encoder"}/{_BIAS}'
  decoder = f'{first[1]}/self_attention/query/kernel'
  needed = {_EMBEDDING, query, wi, bias, decoder}
  hf_match.check_names(
    expected=needed,
    found=needed & set(shapes),
    what=f'{what} holds no T5 of T5X',
    kind='tensors',
  )
  axes = int(scanned)
  embedding = _sizes(shapes, _EMBEDDING, 2, what)
  heads, *_, buckets = _sizes(shapes, bias, 2 + axes * per_layer, what)
  heads_apart = len(shapes[query]) == 3 + axes
  ranks = 3 if heads_apart else 2
  attention = list(_sizes(shapes, query, ranks + axes, what))
  decoder_attention = _sizes(shapes, decoder, ranks + axes, what)
  if scanned:
    layers = [attention.pop(LAYER_AXIS), decoder_attention[LAYER_AXIS]]
  else:
    layers = [_count(shapes, stack) for stack in _STACKS]
  joined = math.prod(attention[1:])
  if not heads or joined % heads:
    raise errors.CheckpointError(
      f'{what}: attention of width {joined} (tensor {query}) does not fit the '
      f'{heads} heads of tensor {bias}. They belong to different models.'
    )
  with schemas.blamed_on(what, errors.CheckpointError):
    config = t5_config.T5Config(
      vocab_size=embedding[0],
      emb_dim=embedding[1],
      num_heads=heads,
      num_encoder_layers=layers[0],
      num_decoder_layers=layers[1],
      head_dim=joined // heads,
      mlp_dim=_sizes(shapes, wi, 2 + axes, what)[-1],
      mlp_activations=_ACTIVATIONS[gated],
      logits_via_embedding=_LOGITS not in shapes,
      relative_attention_num_buckets=buckets,
      relpos_bias_per_layer=per_layer,
    )
  return config, Form(scanned, heads_apart)


def _sizes(
  shapes: Mapping[str, _Shape], name: str, rank: int, what: str
) -> _Shape:
  shape = shapes[name]
  if len(shape) != rank or not all(shape):
    raise errors.CheckpointError(
      f'{what}: tensor {name} has shape {list(shape)}, and should have {rank} '
      'axes, none of them empty. Copy the checkpoint again, or check that it '
      'holds a T5.'
    )
  return shape


def _count(names: Iterable[str], stack: str) -> int:
  matches = filter(None, map(_LAYER.match, names))
  return 1 + max(int(match[2]) for match in matches if match[1] == stack)


def check_architecture(
  config: t5_config.T5Config, stored: t5_config.T5Config, what: str
) -> None:
  """Raises a `CheckpointError` if a model's architecture is another one.

  Fields that shapes do not determine are not compared.

  Args:
    config: configuration of the model to fill.
    stored: configuration from `infer`.
    what: the checkpoint, for the message.
  """
  here, there = config.architecture(), stored.architecture()
  gated = {True: 'is gated', False: 'is not gated'}
  different = [
    f'{name} is {there[name]} in the checkpoint and {here[name]} in the '
    'configuration'
    for name in here
    if name not in _UNTOLD and here[name] != there[name]
  ]
  if len(config.mlp_activations) != len(stored.mlp_activations):
    is_gated = len(stored.mlp_activations) > 1
    different.append(
      f'the MLP {gated[is_gated]} in the checkpoint and {gated[not is_gated]} '
      'in the configuration'
    )
  if different:
    raise errors.CheckpointError(
      f'{what} holds another model than the configuration: '
      f'{"; ".join(different)}. Use the model configuration of the '
      'checkpoint, or another checkpoint.'
    )


def check(
  table: Iterable[Source], shapes: Mapping[str, _Shape], what: str
) -> None:
  """Raises a `CheckpointError` that lists tensors that do not match.

  Args:
    table: sources of all parameters.
    shapes: shapes of all tensors, by name; every tensor must be used.
    what: the checkpoint, for the message.
  """
  expected = {source.tensor: source.tensor_shape for source in table}
  hf_match.check_names(
    expected=set(expected),
    found=set(shapes),
    what=f'{what} does not hold one whole T5',
    kind='tensors',
  )
  wrong = list(_misshapen(expected, shapes))
  if wrong:
    more = len(wrong) - _MOST_LISTED
    rest = f' and {more} more' if more > 0 else ''
    raise errors.CheckpointError(
      f'{what} has tensors of another shape than the rest of it implies: '
      f'{"; ".join(wrong[:_MOST_LISTED])}{rest}. Its weights must be of one '
      'model.'
    )


def _misshapen(
  expected: Mapping[str, _Shape], shapes: Mapping[str, _Shape]
) -> Iterator[str]:
  for name, shape in expected.items():
    if tuple(shapes[name]) != tuple(shape):
      yield f'{name} has {list(shapes[name])} and should have {list(shape)}'
