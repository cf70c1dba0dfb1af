"""Makes the tiny Hugging Face T5 directories and the golden arrays beside it.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 \
        transformers==5.23.0 safetensors
    /tmp/torch/bin/python tests/golden/make_hf_t5_golden.py [NAME ...]

(hf_t5_mt5 and hf_t5_umt5 are made with torch 2.14.0 and transformers 5.24.0)
writes, beside this file, for each of five random models a directory as one
gets it from the hub (`config.json`, weights, a ByT5 tokenizer's config) and
`<name>.npz`, what `transformers` makes of it; and `hf_t5_texts.jsonl`, the
prompts and responses. The tests read these and need neither package.

The arrays are computed by a model that `from_pretrained` read from the very
files that are committed, because a model built in memory is not the model one
gets: transformers 5 ties the output layer of every new T5, whatever its
configuration says. Weights stay small: attention logits are not scaled, and a
saturated softmax would turn rounding into large differences.

Arrays of `<name>.npz`, with N texts, all padded on the right with 0:
  encoder_tokens int32 [N, prompt_length]: bytes of the prompt, then EOS.
  encoder_mask bool [N, prompt_length].
  target_tokens int32 [N, response_length]: bytes of the response, then EOS.
  target_mask bool [N, response_length]: real targets, EOS included.
  token_logprobs float32 [N, response_length]: of each target; 0 at padding.
  logprobs float64 [N]: their sums.
  logit_positions int32 [N, 4]: from the first target to EOS.
  logits float32 [N, 4, vocab]: there.
  greedy_tokens int32 [N, 20]: greedy decoding, cut off at 20 tokens.
  greedy_margin float32 []: the smallest lead of a greedily chosen token's
    logit; the decode is well defined where it exceeds rounding.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
MAX_NEW_TOKENS = 20
NUM_LOGIT_POSITIONS = 4

TEXTS = (
  ('Order: large latte, oat milk.', 'One large latte with oat milk.'),
  ('hi', 'Hello! What would you like to drink today?'),
  ('', 'An empty prompt.'),
  ('Translate: ¿Dónde está el café?', 'Where is the café? — “là-bas” ☕'),
  ('One byte comes back.', '.'),
  # Longer than the 128 positions after which relative distance saturates.
  (
    'customer: I would like two tickets for the late show. assistant: Which '
    'city are you in? customer: In Lisbon, near the river. assistant: There '
    'is a show at nine and one at ten past eleven. customer: The second one, '
    'please, and seats on the aisle if there are any left.',
    'Two aisle seats for the show at ten past eleven in Lisbon: shall I book '
    'them now? The price is eleven euros a ticket, payable by card.',
  ),
)

# No two widths are equal, so that a kernel left untransposed has a wrong shape.
SHAPE = {
  'd_model': 16,
  'd_kv': 4,
  'd_ff': 20,
  'num_heads': 3,
  'vocab_size': 384,
}

# As the hub has them: keys that were added to the format later are absent, and
# `tie_word_embeddings` is what the model's authors wrote.
_COMMON = {
  'architectures': ['T5ForConditionalGeneration'],
  'decoder_start_token_id': 0,
  'dropout_rate': 0.1,
  'eos_token_id': 1,
  'initializer_factor': 1.0,
  'is_encoder_decoder': True,
  'layer_norm_epsilon': 1e-06,
  'model_type': 't5',
  'output_past': True,
  'pad_token_id': 0,
  'relative_attention_num_buckets': 32,
  'tokenizer_class': 'ByT5Tokenizer',
}
CONFIGS = {
  # Like google-t5/t5-small.
  'hf_t5_v1_0': {'num_layers': 2, 'n_positions': 512},
  # Like google/t5-v1_1-small, Flan-T5 and ByT5.
  'hf_t5_v1_1': {
    'num_layers': 2,
    'num_decoder_layers': 3,
    'feed_forward_proj': 'gated-gelu',
    'tie_word_embeddings': False,
  },
  # Gated, but with the output layer of v1.0.
  'hf_t5_gated_tied': {
    'num_layers': 3,
    'num_decoder_layers': 2,
    'feed_forward_proj': 'gated-gelu',
    'relative_attention_max_distance': 128,
    'tie_word_embeddings': True,
    'use_cache': True,
  },
  # Like google/mt5-small.
  'hf_t5_mt5': {
    'architectures': ['MT5ForConditionalGeneration'],
    'feed_forward_proj': 'gated-gelu',
    'model_type': 'mt5',
    'num_decoder_layers': 2,
    'num_layers': 2,
    'tie_word_embeddings': False,
  },
  # Like google/umt5-small: every layer has its own position bias.
  'hf_t5_umt5': {
    'architectures': ['UMT5ForConditionalGeneration'],
    'dense_act_fn': 'gelu_new',
    'feed_forward_proj': 'gated-gelu',
    'is_gated_act': True,
    'model_type': 'umt5',
    'num_decoder_layers': 3,
    'num_layers': 2,
    'relative_attention_max_distance': 128,
    'scalable_attention': True,
    'tie_word_embeddings': False,
  },
}
SHARD_SIZES = {'hf_t5_v1_1': '50KB'}
EOS_FACTOR = 2.0
# With these, each prompt is continued in its own way, no margin is small, and
# some decodes of each model end early.
SEEDS = {
  'hf_t5_v1_0': 25,
  'hf_t5_v1_1': 36,
  'hf_t5_gated_tied': 20,
  'hf_t5_mt5': 3,
  'hf_t5_umt5': 24,
}

TOKENIZER_CONFIG = {
  'additional_special_tokens': [f'<extra_id_{i}>' for i in range(125)],
  'eos_token': '</s>',
  'extra_ids': 125,
  'pad_token': '<pad>',
  'tokenizer_class': 'ByT5Tokenizer',
  'unk_token': '<unk>',
}


def _standard_deviation(name: str) -> float:
  if 'relative_attention_bias' in name:
    return 0.5
  if 'shared' in name:
    return 0.5
  if name.endswith(('.o.weight', '.wo.weight')):
    return 0.6
  if 'lm_head' in name:
    return 0.15
  return 0.2


def _write_json(path: pathlib.Path, value) -> None:
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')


def write_directory(name: str, seed: int) -> pathlib.Path:
  """Writes a random model as a Hugging Face directory and returns its path."""
  config = _COMMON | SHAPE | CONFIGS[name]
  model_class = getattr(transformers, config['architectures'][0])
  model = model_class(model_class.config_class.from_dict(config))
  if not config.get('tie_word_embeddings', True):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter_name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if 'layer_norm' in parameter_name:
        parameter.copy_(1.0 + 0.2 * noise)
      else:
        parameter.copy_(_standard_deviation(parameter_name) * noise)
    # A longer row wins more often: some greedy decodes end with EOS.
    model.lm_head.weight[1] *= EOS_FACTOR

  path = HERE / name
  shutil.rmtree(path, ignore_errors=True)
  model.save_pretrained(path, max_shard_size=SHARD_SIZES.get(name, '1GB'))
  (path / 'generation_config.json').unlink()
  # transformers 5 would write that the output layer is tied.
  _write_json(path / 'config.json', config)
  _write_json(path / 'tokenizer_config.json', TOKENIZER_CONFIG)
  return path


def _pad(rows: list[list[int]]) -> np.ndarray:
  padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, tokens in zip(padded, rows, strict=True):
    row[: len(tokens)] = tokens
  return padded


def compute(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns what `transformers` makes of a directory and `TEXTS`."""
  config = json.loads((path / 'config.json').read_text())
  model_class = getattr(transformers, config['architectures'][0])
  model = model_class.from_pretrained(
    path, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  tied = config.get('tie_word_embeddings', True)
  if (model.lm_head.weight is model.shared.weight) != tied:
    raise AssertionError(f'{path}: the output layer is not as config.json says')
  if getattr(model.config, 'scale_decoder_outputs', tied) != tied:
    raise AssertionError(f'{path}: logits are not scaled as in T5X')

  tokenizer = transformers.ByT5Tokenizer.from_pretrained(path)
  prompts = _pad([tokenizer(prompt).input_ids for prompt, _ in TEXTS])
  targets = _pad([tokenizer(response).input_ids for _, response in TEXTS])
  mask, target_mask = prompts != 0, targets != 0
  decoder_inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  encoder = {
    'input_ids': torch.from_numpy(prompts).long(),
    'attention_mask': torch.from_numpy(mask).long(),
  }
  with torch.no_grad():
    logits = model(
      **encoder, decoder_input_ids=torch.from_numpy(decoder_inputs).long()
    ).logits
    greedy = model.generate(
      **encoder,
      do_sample=False,
      num_beams=1,
      max_new_tokens=MAX_NEW_TOKENS,
      # The cache of transformers 5.23 is too short for a decoder with more
      # layers than the encoder.
      use_cache=False,
      output_logits=True,
      return_dict_in_generate=True,
    )
  index = torch.from_numpy(targets).long()[..., None]
  token_logprobs = torch.log_softmax(logits.double(), -1).gather(-1, index)
  token_logprobs = np.where(target_mask, token_logprobs[..., 0].numpy(), 0.0)

  lengths = target_mask.sum(1)
  positions = np.stack(
    [
      np.linspace(0, n - 1, NUM_LOGIT_POSITIONS).astype(np.int32)
      for n in lengths
    ]
  )
  rows = np.arange(len(TEXTS))[:, None]
  greedy_tokens = np.zeros((len(TEXTS), MAX_NEW_TOKENS), np.int32)
  sequences = greedy.sequences[:, 1:].numpy()
  greedy_tokens[:, : sequences.shape[1]] = sequences
  generated = np.cumsum(greedy_tokens == 1, 1) - (greedy_tokens == 1) == 0
  best = torch.stack(greedy.logits, 1).topk(2, -1).values
  lead = (best[..., 0] - best[..., 1]).numpy()
  return {
    'encoder_tokens': prompts,
    'encoder_mask': mask,
    'target_tokens': targets,
    'target_mask': target_mask,
    'token_logprobs': token_logprobs.astype(np.float32),
    'logprobs': token_logprobs.sum(1),
    'logit_positions': positions,
    'logits': logits.numpy()[rows, positions],
    'greedy_tokens': greedy_tokens,
    'greedy_margin': lead[generated[:, : lead.shape[1]]].min(),
  }


def main() -> None:
  """Writes the files of the models that are named, or every file."""
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  with (HERE / 'hf_t5_texts.jsonl').open('w') as lines:
    for prompt, response in TEXTS:
      record = {'prompt': prompt, 'response': response}
      lines.write(json.dumps(record, ensure_ascii=False) + '\n')
  for name in sys.argv[1:] or CONFIGS:
    arrays = compute(write_directory(name, SEEDS[name]))
    np.savez_compressed(HERE / f'{name}.npz', **arrays)
    print(name, 'logprobs', arrays['logprobs'])
    print('greedy, smallest lead', arrays['greedy_margin'])
    print(arrays['greedy_tokens'])


if __name__ == '__main__':
  main()
