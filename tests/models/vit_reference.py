"""A ViT in plain numpy, one image and one head at a time."""

import numpy as np


def _layer_norm(x, params):
  mean = x.mean(axis=-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  y = (x - mean) / np.sqrt(variance + 1e-6)
  return y * params['scale'] + params['bias']


def _dense(x, params):
  return x @ params['kernel'] + params['bias']


def _attention(x, params, num_heads):
  query, key, value = (
    _dense(x, params[name]) for name in ('query', 'key', 'value')
  )
  size = x.shape[-1] // num_heads
  heads = []
  for head in range(num_heads):
    columns = slice(head * size, (head + 1) * size)
    out = np.zeros((len(x), size))
    for i in range(len(x)):
      logits = key[:, columns] @ query[i, columns] / np.sqrt(size)
      weights = np.exp(logits - logits.max())
      out[i] = (weights / weights.sum()) @ value[:, columns]
    heads.append(out)
  return _dense(np.concatenate(heads, axis=-1), params['out'])


def _gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def tokens(params, image, config):
  """Tokens of one image, uint8 `[height, width, 3]`: `[tokens, width]`."""
  size, side = config.patch_size, config.image_size // config.patch_size
  pixels = image.astype(np.float64) / 127.5 - 1
  x = np.zeros((side * side, config.width))
  for row in range(side):
    for column in range(side):
      patch = pixels[
        row * size : (row + 1) * size, column * size : (column + 1) * size
      ]
      x[row * side + column] = (
        np.einsum('hwc,hwcd->d', patch, params['embedding']['kernel'])
        + params['embedding']['bias']
      )
  x = x + params['pos_embedding'][0]
  for index in range(config.depth):
    block = params['Transformer'][f'encoderblock_{index}']
    y = _layer_norm(x, block['LayerNorm_0'])
    attention = block['MultiHeadDotProductAttention_0']
    x = x + _attention(y, attention, config.num_heads)
    y = _layer_norm(x, block['LayerNorm_1'])
    hidden = _gelu(_dense(y, block['MlpBlock_0']['Dense_0']))
    x = x + _dense(hidden, block['MlpBlock_0']['Dense_1'])
  return _layer_norm(x, params['Transformer']['encoder_norm'])
