"""Makes the tiny SigLIP and T5 of a PaLI, and what comes out of them.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 \
        transformers==5.23.0 safetensors
    /tmp/torch/bin/python tests/golden/make_hf_pali_golden.py

writes, beside this file, the directories `hf_pali/siglip` and `hf_pali/t5` as
one gets them from the hub, of random models, and `hf_pali.npz`: what
`transformers` makes of them, put together as PaLI is. No package has a PaLI,
and its parts are packaged: the states of a SigLIP before pooling go through a
linear layer and are put before the embedded text, and a T5 1.1 reads both as
its `inputs_embeds`. The tests read these and need neither package.

The arrays are computed by models that `from_pretrained` read from the very
files that are committed: transformers 5 ties the output layer of every new T5,
whatever its configuration says. Weights stay small, because a saturated
softmax would turn rounding into large differences.

Arrays of `hf_pali.npz`:
  projection_weight float32 [32, 48], projection_bias float32 [32]: the linear
    layer, as torch holds it.
  pictures uint8 [6, 56, 56, 3]: the images that rows have.
and for each of `one/` (a row has one image or none) and `two/` (two, one or
none, with each of two images absent somewhere), with B rows, n images a row,
16 tokens an image:
  image_index int32 [B, n]: which picture; -1 where the image is absent. Such
    an image is black, and its tokens are masked.
  tokens int32 [B, text_length]: padded on the right with 0.
  decoder_input_tokens int32 [B, response_length]: 0, then the response.
  target_mask bool [B, response_length]: positions that predict something.
  image_states float32 [B, n, 16, 48]: `last_hidden_state` of the SigLIP; 0
    where the image is absent. Only of `one/`.
  encoder_states float32 [B, n * 16 + text_length, 32]: 0 where masked.
  logits float32 [B, response_length, 384]: 0 where target_mask is False.
"""

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TARGET = HERE / 'hf_pali'
SEED = 11

SIGLIP = {
  'architectures': ['SiglipVisionModel'],
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_size': 48,
  'image_size': 56,
  'intermediate_size': 96,
  'layer_norm_eps': 1e-06,
  'model_type': 'siglip_vision_model',
  'num_attention_heads': 4,
  'num_channels': 3,
  'num_hidden_layers': 2,
  'patch_size': 14,
  # The pooling head is not read, and is a quarter of so small a model.
  'vision_use_head': False,
}
T5 = {
  'architectures': ['T5ForConditionalGeneration'],
  'd_ff': 40,
  'd_kv': 8,
  'd_model': 32,
  'decoder_start_token_id': 0,
  'dropout_rate': 0.1,
  'eos_token_id': 1,
  'feed_forward_proj': 'gated-gelu',
  'is_encoder_decoder': True,
  'layer_norm_epsilon': 1e-06,
  'model_type': 't5',
  'num_decoder_layers': 1,
  'num_heads': 3,
  'num_layers': 2,
  'pad_token_id': 0,
  'relative_attention_num_buckets': 32,
  'tie_word_embeddings': False,
  'tokenizer_class': 'ByT5Tokenizer',
  'vocab_size': 384,
}
TOKENIZER_CONFIG = {
  'additional_special_tokens': [f'<extra_id_{i}>' for i in range(125)],
  'eos_token': '</s>',
  'extra_ids': 125,
  'pad_token': '<pad>',
  'tokenizer_class': 'ByT5Tokenizer',
  'unk_token': '<unk>',
}

NUM_PICTURES = 6
ROWS = {
  'one': (
    ((0,), 'what is it?', 'a cat'),
    ((1,), '', 'hat'),
    ((-1,), 'no image', 'why?'),
    ((2,), 'hi', 'é!'),
    ((3,), 'how many?', '3'),
  ),
  'two': (
    ((4, 5), 'compare.', 'same'),
    ((5, 4), 'compare.', 'same'),
    ((0, -1), 'one', 'b'),
    ((-1, 1), 'other', 'ab'),
    ((-1, -1), 'neither', ''),
  ),
}


def _write_json(path: pathlib.Path, value) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')


def _randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
  for name, parameter in module.named_parameters():
    noise = 0.1 * torch.randn(parameter.shape, generator=generator)
    is_scale = 'norm' in name and name.endswith('weight')
    parameter.copy_(1.0 + noise if is_scale else noise)


def _save(model, path: pathlib.Path, config) -> None:
  shutil.rmtree(path, ignore_errors=True)
  model.save_pretrained(path)
  (path / 'generation_config.json').unlink(missing_ok=True)
  # As the hub has it: transformers 5 would write that the T5 is tied.
  _write_json(path / 'config.json', config)


def write_directories(generator: torch.Generator) -> None:
  """Writes two random models as Hugging Face directories."""
  siglip = transformers.SiglipVisionModel(
    transformers.SiglipVisionConfig.from_dict(SIGLIP)
  )
  t5 = transformers.T5ForConditionalGeneration(
    transformers.T5Config.from_dict(T5)
  )
  t5.lm_head.weight = torch.nn.Parameter(t5.lm_head.weight.clone())
  _randomise(siglip, generator)
  _randomise(t5, generator)
  _save(siglip, TARGET / 'siglip', SIGLIP)
  _save(t5, TARGET / 't5', T5)
  _write_json(TARGET / 't5' / 'tokenizer_config.json', TOKENIZER_CONFIG)


def _pad(rows: list[list[int]]) -> np.ndarray:
  padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, tokens in zip(padded, rows, strict=True):
    row[: len(tokens)] = tokens
  return padded


def _bytes(text: str) -> list[int]:
  return [byte + 3 for byte in text.encode()] + [1]


def compute(
  siglip, projection, t5, pictures: np.ndarray, rows
) -> dict[str, np.ndarray]:
  """Returns the arrays of some rows."""
  index = np.array([images for images, _, _ in rows], np.int32)
  present = index >= 0
  images = np.where(present[..., None, None, None], pictures[index], 0)
  batch, num_images = index.shape
  pixels = torch.from_numpy(
    images.reshape(-1, *pictures.shape[1:]).transpose(0, 3, 1, 2).copy()
  )
  states = siglip(pixel_values=pixels.float() / 127.5 - 1.0).last_hidden_state
  num_tokens = states.shape[1]

  tokens = _pad([_bytes(text) for _, text, _ in rows])
  mask = np.concatenate(
    [np.repeat(present, num_tokens, axis=1), tokens != 0], axis=1
  )
  embedded = torch.cat(
    [
      projection(states).reshape(batch, num_images * num_tokens, -1),
      t5.shared(torch.from_numpy(tokens).long()),
    ],
    dim=1,
  )
  targets = _pad([_bytes(response) for _, _, response in rows])
  decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]

  def run(embedded, mask):
    return t5(
      inputs_embeds=embedded,
      attention_mask=torch.from_numpy(mask).long(),
      decoder_input_ids=torch.from_numpy(decoder_inputs).long(),
    )

  output = run(embedded, mask)
  text_only = mask.copy()
  text_only[:, : num_images * num_tokens] = False
  effect = (output.logits - run(embedded, text_only).logits).abs().amax((1, 2))
  print('change of logits if images are masked, a row:', effect.numpy())
  print('largest logit', output.logits.abs().max().item())

  encoder_states = output.encoder_last_hidden_state.numpy()
  states = states.reshape(batch, num_images, num_tokens, -1).numpy()
  target_mask = targets != 0
  return {
    'image_index': index,
    'tokens': tokens,
    'decoder_input_tokens': decoder_inputs,
    'target_mask': target_mask,
    'image_states': np.where(present[..., None, None], states, 0.0),
    'encoder_states': np.where(mask[..., None], encoder_states, 0.0),
    'logits': np.where(target_mask[..., None], output.logits.numpy(), 0.0),
  }


def main() -> None:
  """Writes every file."""
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  generator = torch.Generator().manual_seed(SEED)
  with torch.no_grad():
    write_directories(generator)
    projection = torch.nn.Linear(SIGLIP['hidden_size'], T5['d_model'])
    _randomise(projection, generator)
    siglip = transformers.SiglipVisionModel.from_pretrained(
      TARGET / 'siglip', dtype=torch.float32, attn_implementation='eager'
    ).eval()
    t5 = transformers.T5ForConditionalGeneration.from_pretrained(
      TARGET / 't5', dtype=torch.float32, attn_implementation='eager'
    ).eval()
    if t5.lm_head.weight is t5.shared.weight:
      raise AssertionError('the output layer is tied')
    if getattr(t5.config, 'scale_decoder_outputs', False):
      raise AssertionError('logits are scaled')
    # Few levels and doubled pixels, for a small file.
    pictures = np.random.default_rng(SEED).integers(
      0, 18, (NUM_PICTURES, 28, 28, 3)
    )
    pictures = (15 * pictures).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    arrays = {
      'projection_weight': projection.weight.numpy(),
      'projection_bias': projection.bias.numpy(),
      'pictures': pictures,
    }
    for name, rows in ROWS.items():
      computed = compute(siglip, projection, t5, pictures, rows)
      if name == 'two':
        del computed['image_states']
      arrays |= {f'{name}/{key}': value for key, value in computed.items()}
  np.savez_compressed(HERE / 'hf_pali.npz', **arrays)


if __name__ == '__main__':
  main()
