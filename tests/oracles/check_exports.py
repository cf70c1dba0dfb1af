"""Holds what `write_exports.py` wrote against transformers and PEFT.

    python tests/oracles/check_exports.py DIR

Prints the largest difference of each directory, and ends with an error if one
is above 1e-4, or if a beam search gives another response that is no matter of
rounding: `transformers` itself gives another one when log-probabilities change
by 1e-5.
"""

import functools
import json
import pathlib
import re
import sys

import numpy as np
import peft
from safetensors import torch as safetensors_torch
import torch
import transformers

TOLERANCE = 1e-4
MODELS = ('t5_v1_0', 't5_v1_1', 't5_gated_tied', 'mt5', 'umt5', 'bfloat16')
LENGTH_PENALTIES = 0.6, 1.0, 2.0
NUM_BEAMS = 4
MERGED = ('merged',)
ADAPTERS = (
  'adapter_usual',
  'adapter_rs',
  'adapter_everything',
  'adapter_some',
  'adapter_tied',
  'adapter_umt5',
  'adapter_dora',
)

problems = []


def _report(name, what, difference):
  ok = difference <= TOLERANCE
  print(f'{name:20} {what:28} {difference:.2e}{"" if ok else "  TOO LARGE"}')
  if not ok:
    problems.append(f'{name}: {what}')


def _require(name, what, holds):
  print(f'{name:20} {what:28} {"yes" if holds else "NO"}')
  if not holds:
    problems.append(f'{name}: {what}')


def _arrays(path):
  with np.load(path.with_name(f'{path.name}.npz')) as arrays:
    return dict(arrays)


def _load(path):
  model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    path,
    dtype=torch.float32,
    attn_implementation='eager',
    output_loading_info=True,
  )
  _require(
    path.name,
    'no key missing or left over',
    not any(
      info[key]
      for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
    ),
  )
  return model.eval()


def _inputs(arrays):
  prompts = torch.from_numpy(arrays['prompts']).long()
  return {'input_ids': prompts, 'attention_mask': (prompts != 0).long()}


def _compare(name, model, arrays, encoder=None):
  encoder = encoder or _inputs(arrays)
  responses = arrays['responses']
  inputs = np.pad(responses, ((0, 0), (1, 0)))[:, :-1]
  logits = model(
    **encoder, decoder_input_ids=torch.from_numpy(inputs).long()
  ).logits
  real = responses != 0
  _report(
    name,
    'logits',
    np.abs(logits.numpy() - arrays['logits'])[real].max(),
  )
  index = torch.from_numpy(responses).long()[..., None]
  taken = torch.log_softmax(logits.double(), -1).gather(-1, index)[..., 0]
  sums = (taken.numpy() * real).sum(1)
  _report(
    name, 'summed log-probabilities', abs(sums - arrays['logprobs']).max()
  )


def _compare_greedy(name, model, arrays):
  length = arrays['greedy'].shape[1]
  sequences = model.generate(
    **_inputs(arrays),
    do_sample=False,
    num_beams=1,
    max_new_tokens=length,
    # Its cache is too short for a decoder with more layers than the encoder.
    use_cache=False,
  )[:, 1:].numpy()
  padded = np.zeros_like(arrays['greedy'])
  padded[:, : sequences.shape[1]] = sequences
  _require(name, 'greedy, token for token', (padded == arrays['greedy']).all())


class _Noise(transformers.LogitsProcessor):
  """Changes log-probabilities by up to 1e-5."""

  def __init__(self, seed):
    self._generator = torch.Generator().manual_seed(seed)

  def __call__(self, input_ids, scores):
    noise = torch.rand(scores.shape, generator=self._generator)
    return scores + 2e-5 * (noise - 0.5)


def _search(model, prompts, length, length_penalty, processors=()):
  prompts = torch.from_numpy(prompts).long()
  sequences = model.generate(
    input_ids=prompts,
    attention_mask=(prompts != 0).long(),
    do_sample=False,
    num_beams=NUM_BEAMS,
    length_penalty=length_penalty,
    max_new_tokens=length,
    use_cache=False,
    logits_processor=transformers.LogitsProcessorList(processors),
  )[:, 1:].numpy()
  # It goes on with EOS after EOS, because its padding token is 0.
  ended = np.cumsum(sequences == 1, 1) > (sequences == 1)
  sequences = np.where(ended, 0, sequences)
  return np.pad(sequences, ((0, 0), (0, length - sequences.shape[1])))


def _compare_beams(name, model, arrays):
  for penalty in LENGTH_PENALTIES:
    ours, prompts = arrays[f'beams_{penalty}'], arrays['beam_prompts']
    search = functools.partial(_search, model, prompts, ours.shape[1], penalty)
    theirs = search()
    differs = (ours != theirs).any(1)
    unfirm = np.zeros_like(differs)
    for seed in range(8 if differs.any() else 0):
      unfirm |= (search([_Noise(seed)]) != theirs).any(1)
    ends = (theirs == 1).any(1).sum()
    print(
      f'{name:20} beams, length penalty {penalty}: {(~differs).sum()} of '
      f'{len(ours)} equal, {(differs & unfirm).sum()} a matter of rounding; '
      f'{ends} end, {len(np.unique(theirs, axis=0))} different responses'
    )
    if (differs & ~unfirm).any():
      problems.append(f'{name}: beams, length penalty {penalty}')


def _compare_tokenizer(name, path, texts, arrays):
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  for kind in ('prompts', 'responses'):
    ids = tokenizer(texts[kind], padding=True, return_tensors='np').input_ids
    same = ids.shape == arrays[kind].shape and (ids == arrays[kind]).all()
    _require(name, f'{type(tokenizer).__name__}, {kind}', bool(same))
  decoded = tokenizer.decode(
    tokenizer(texts['prompts'][0]).input_ids, skip_special_tokens=True
  )
  _require(name, 'decodes', decoded == texts['prompts'][0])


def _check_model(path, texts):
  arrays = _arrays(path)
  model = _load(path)
  config = json.loads((path / 'config.json').read_text())
  _require(
    path.name,
    'tied as it should be',
    (model.lm_head.weight is model.shared.weight)
    == config['tie_word_embeddings'],
  )
  _compare(path.name, model, arrays)
  _compare_greedy(path.name, model, arrays)
  if 'beam_prompts' in arrays:
    _compare_beams(path.name, model, arrays)
  _compare_tokenizer(path.name, path, texts, arrays)
  stored = transformers.AutoModelForSeq2SeqLM.from_pretrained(path).dtype
  _require(
    path.name, f'loads as {stored}', config['torch_dtype'] in str(stored)
  )


def _check_adapter(path):
  base = (
    path.parent
    / json.loads((path / 'adapter_config.json').read_text())[
      'base_model_name_or_path'
    ]
  )
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    base, dtype=torch.float32, attn_implementation='eager'
  )
  arrays = _arrays(path)
  bare = model(
    **_inputs(arrays), decoder_input_ids=_inputs(arrays)['input_ids'][:, :4]
  ).logits
  adapted = peft.PeftModel.from_pretrained(model, path).eval()
  change = (
    adapted(
      **_inputs(arrays), decoder_input_ids=_inputs(arrays)['input_ids'][:, :4]
    ).logits
    - bare
  )
  _require(path.name, 'changes logits by > 0.1', change.abs().max() > 0.1)
  _compare(path.name, adapted, arrays)
  state = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
  written = safetensors_torch.load_file(path / 'adapter_model.safetensors')
  _require(path.name, 'same tensors in PEFT', sorted(state) == sorted(written))


def _run_readme(path, **names):
  """Runs the Python of a README.md and returns what it defines."""
  blocks = re.findall(
    r'```python\n(.*?)```', (path / 'README.md').read_text(), re.S
  )
  names |= {'path': str(path)}
  exec(compile('\n'.join(blocks), path.name, 'exec'), names)
  return names


def _check_reward(path, texts, **names):
  scored = _run_readme(path, **names)
  scores = scored['score'](texts['prompts'], texts['responses'])
  expected = _arrays(path)['scores']
  _report(path.name, 'scores', np.abs(scores.numpy() - expected).max())
  _require(path.name, 'scores differ by > 0.1', np.ptp(expected) > 0.1)
  alone = scored['score'](texts['prompts'][:1], texts['responses'][:1])
  _report(path.name, 'score of one alone', abs(alone[0].item() - expected[0]))


def _check_pali(path, texts):
  arrays = _arrays(path)
  defined = _run_readme(path)
  pictures = torch.from_numpy(np.load(path.parent / 'pictures.npy'))
  encoded = defined['encode'](texts['prompts'], pictures)
  mask = encoded['attention_mask'].numpy().astype(bool)
  states = encoded['encoder_outputs'].last_hidden_state.numpy()
  _report(path.name, 'states', np.abs(states - arrays['states'])[mask].max())
  _compare(path.name, defined['t5'], arrays, encoded)
  scores = defined['score'](texts['prompts'], pictures, texts['responses'])
  _report(path.name, 'scores', np.abs(scores.numpy() - arrays['scores']).max())


def main():
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  versions = (
    f'{module.__name__} {module.__version__}'
    for module in (torch, transformers, peft)
  )
  print(', '.join(versions))
  root = pathlib.Path(sys.argv[1])
  texts = json.loads((root / 'texts.json').read_text())
  for name in (*MODELS, *MERGED):
    _check_model(root / name, texts)
  for name in ADAPTERS:
    _check_adapter(root / name)
  _check_reward(root / 'reward', texts)
  _check_reward(root / 'reward_adapter', texts, base=str(root / 't5_v1_1'))
  _check_pali(root / 'pali', texts)
  if problems:
    sys.exit('\n'.join(problems))


if __name__ == '__main__':
  main()
