"""Makes tiny adapters, trained by PEFT, and what comes out of them.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.14.0 \
        transformers==5.24.0 peft==0.21.2 safetensors
    /tmp/torch/bin/python tests/golden/make_peft_golden.py

writes, beside this file, for each of two configurations of LoRA a directory
`hf_peft/<name>`, as `save_pretrained` makes it after a few steps of AdamW on
the prompts and responses of `hf_t5_v1_1.npz`, whose model is the base; and
`hf_peft.npz`. The tests read these and need none of the packages.

Arrays of `hf_peft.npz`, for each name, of the tokens of `hf_t5_v1_1.npz`:
  <name>/logits float32 [N, 2, vocab]: at the first and third of its
    `logit_positions`, of the base with the adapter that was saved.
  <name>/logprobs float64 [N]: summed log-probabilities of the responses.
"""

import json
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
BASE = 'hf_t5_v1_1'
POSITIONS = (0, 2)
STEPS = 5

CONFIGS = {
  'plain': {
    'r': 4,
    'lora_alpha': 8,
    'lora_dropout': 0.1,
    'target_modules': ['q', 'v'],
  },
  # Modules of other ranks and scales, by patterns that overlap.
  'patterns': {
    'r': 2,
    'lora_alpha': 3,
    'use_rslora': True,
    'target_modules': r'.*block\.[01]\..*\.(q|k|v|o|wi_0|wi_1|wo)|lm_head',
    'exclude_modules': ['wi_1'],
    'rank_pattern': {'decoder.block.0.layer.1.EncDecAttention.q': 5, 'wo': 1},
    'alpha_pattern': {'DenseReluDense.wo': 7, '.*decoder.*[kv]': 2},
  },
}


def _forward(model, golden):
  targets = golden['target_tokens']
  return model(
    input_ids=torch.from_numpy(golden['encoder_tokens']).long(),
    attention_mask=torch.from_numpy(golden['encoder_mask']).long(),
    decoder_input_ids=torch.from_numpy(
      np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    ).long(),
  ).logits


def _logprobs(logits, golden):
  index = torch.from_numpy(golden['target_tokens']).long()[..., None]
  logprobs = torch.log_softmax(logits.double(), -1).gather(-1, index)[..., 0]
  return (logprobs * torch.from_numpy(golden['target_mask'])).sum(1)


def _base():
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(
    HERE / BASE, dtype=torch.float32, attn_implementation='eager'
  )


def train(name: str, golden) -> pathlib.Path:
  """Trains an adapter and returns the directory that PEFT wrote."""
  torch.manual_seed(5)
  model = peft.get_peft_model(
    _base(), peft.LoraConfig(task_type='SEQ_2_SEQ_LM', **CONFIGS[name])
  ).train()
  optimizer = torch.optim.AdamW(
    [p for p in model.parameters() if p.requires_grad], lr=0.05
  )
  for step in range(STEPS):
    loss = -_logprobs(_forward(model, golden), golden).mean()
    print(name, 'step', step, 'loss', loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  path = HERE / 'hf_peft' / name
  shutil.rmtree(path, ignore_errors=True)
  model.save_pretrained(path, save_embedding_layers=False)
  (path / 'README.md').unlink()
  # Nothing of the machine's paths is kept.
  config = json.loads((path / 'adapter_config.json').read_text())
  config['base_model_name_or_path'] = BASE
  text = json.dumps(config, indent=2) + '\n'
  (path / 'adapter_config.json').write_text(text)
  return path


def main() -> None:
  """Writes every file."""
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  with np.load(HERE / f'{BASE}.npz') as file:
    golden = dict(file)
  rows = np.arange(len(golden['target_tokens']))[:, None]
  positions = golden['logit_positions'][:, list(POSITIONS)]
  arrays = {}
  for name in CONFIGS:
    path = train(name, golden)
    model = peft.PeftModel.from_pretrained(_base(), path).eval()
    with torch.no_grad():
      logits = _forward(model, golden)
      with model.disable_adapter():
        change = (_forward(model, golden) - logits).abs().max().item()
    print(name, 'the adapter changes logits by up to', change)
    arrays[f'{name}/logits'] = logits.numpy()[rows, positions]
    arrays[f'{name}/logprobs'] = _logprobs(logits, golden).numpy()
  np.savez_compressed(HERE / 'hf_peft.npz', **arrays)


if __name__ == '__main__':
  main()
