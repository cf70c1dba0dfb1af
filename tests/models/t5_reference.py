"""The forward pass of T5 in numpy, written from the paper, slow and plain.

Raffel et al. 2020 (arXiv:1910.10683) sections 2.1 and 2.4.4; Shazeer 2020
(arXiv:2002.05202) for gated feed-forward layers; Zhang & Sennrich 2019 for
the norm. Everything is float64.
"""

import math

import numpy as np


def bucket(relative, bidirectional, num_buckets, max_distance):
  """The bucket of one pair; `relative` is key minus query position."""
  first = 0
  if bidirectional:
    num_buckets = num_buckets // 2
    if relative > 0:
      first = num_buckets
    distance = abs(relative)
  else:
    distance = max(-relative, 0)
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  # In float32, which decides on which side of a border a distance falls.
  share = np.log(np.float32(distance) / np.float32(exact)) / np.float32(
    math.log(max_distance / exact)
  )
  log_bucket = exact + int(share * np.float32(num_buckets - exact))
  return first + min(log_bucket, num_buckets - 1)


def position_bias(table, length, bidirectional, config):
  """`[heads, length, length]` from a table `[heads, buckets]`."""
  bias = np.zeros((table.shape[0], length, length))
  for q in range(length):
    for k in range(length):
      index = bucket(
        k - q,
        bidirectional,
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
      )
      bias[:, q, k] = table[:, index]
  return bias


def rms_norm(x, scale):
  out = np.zeros_like(x)
  for index in np.ndindex(x.shape[:-1]):
    row = x[index]
    rms = math.sqrt(sum(v * v for v in row) / len(row) + 1e-6)
    out[index] = row / rms * scale
  return out


def softmax(row):
  row = np.exp(row - row.max())
  return row / row.sum()


def attention(params, x, memory, allowed, bias, num_heads):
  """One example: `x` `[q, d]`, `memory` `[k, d]`, `allowed` bool `[q, k]`."""
  query = x @ params['query']['kernel']
  key = memory @ params['key']['kernel']
  value = memory @ params['value']['kernel']
  width = query.shape[1] // num_heads
  out = np.zeros((x.shape[0], query.shape[1]))
  for head in range(num_heads):
    part = slice(head * width, (head + 1) * width)
    for q in range(x.shape[0]):
      keys = [k for k in range(memory.shape[0]) if allowed[q, k]]
      logits = np.array([query[q, part] @ key[k, part] for k in keys])
      if bias is not None:
        logits = logits + np.array([bias[head, q, k] for k in keys])
      for weight, k in zip(softmax(logits), keys, strict=True):
        out[q, part] += weight * value[k, part]
  return out @ params['out']['kernel']


def activate(name, x):
  if name == 'relu':
    return np.maximum(x, 0)
  if name == 'silu':
    return x / (1 + np.exp(-x))
  if name == 'gelu':
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))
  return x


def mlp(params, x, activations):
  if len(activations) == 1:
    hidden = activate(activations[0], x @ params['wi']['kernel'])
  else:
    hidden = activate(activations[0], x @ params['wi_0']['kernel'])
    hidden = hidden * activate(activations[1], x @ params['wi_1']['kernel'])
  return hidden @ params['wo']['kernel']


def _bias(stack, layer, length, bidirectional, config):
  owner = layer if config.relpos_bias_per_layer else stack
  table = owner['relpos_bias']['rel_embedding']
  return position_bias(table, length, bidirectional, config)


def encode(params, tokens, mask, config):
  """One prompt: `tokens` and `mask` `[length]` to states `[length, d]`."""
  stack = params['encoder']
  length = len(tokens)
  x = params['token_embedder']['embedding'][tokens]
  allowed = np.tile(mask, (length, 1))
  for index in range(config.num_encoder_layers):
    layer = stack[f'layers_{index}']
    bias = _bias(stack, layer, length, True, config)
    y = rms_norm(x, layer['pre_attention_layer_norm']['scale'])
    x = x + attention(layer['attention'], y, y, allowed, bias, config.num_heads)
    y = rms_norm(x, layer['pre_mlp_layer_norm']['scale'])
    x = x + mlp(layer['mlp'], y, config.mlp_activations)
  return rms_norm(x, stack['encoder_norm']['scale'])


def decode(params, encoded, mask, tokens, config):
  """One response: decoder inputs `[length]` to hidden states `[length, d]`."""
  stack = params['decoder']
  length = len(tokens)
  x = params['token_embedder']['embedding'][tokens]
  causal = np.array([[k <= q for k in range(length)] for q in range(length)])
  to_prompt = np.tile(mask, (length, 1))
  for index in range(config.num_decoder_layers):
    layer = stack[f'layers_{index}']
    bias = _bias(stack, layer, length, False, config)
    y = rms_norm(x, layer['pre_self_attention_layer_norm']['scale'])
    x = x + attention(
      layer['self_attention'], y, y, causal, bias, config.num_heads
    )
    y = rms_norm(x, layer['pre_cross_attention_layer_norm']['scale'])
    x = x + attention(
      layer['encoder_decoder_attention'],
      y,
      encoded,
      to_prompt,
      None,
      config.num_heads,
    )
    y = rms_norm(x, layer['pre_mlp_layer_norm']['scale'])
    x = x + mlp(layer['mlp'], y, config.mlp_activations)
  return rms_norm(x, stack['decoder_norm']['scale'])


def logits(params, prompt, prompt_mask, response, config):
  """Logits `[batch, response_length, vocab]` of a batch, row by row."""
  rows = []
  for b in range(len(prompt)):
    encoded = encode(params, prompt[b], prompt_mask[b], config)
    hidden = decode(params, encoded, prompt_mask[b], response[b], config)
    if config.logits_via_embedding:
      row = hidden @ params['token_embedder']['embedding'].T
      row = row / math.sqrt(config.emb_dim)
    else:
      row = hidden @ params['decoder']['logits_dense']['kernel']
    rows.append(row)
  return np.stack(rows)
