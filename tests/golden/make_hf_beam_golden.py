"""Makes golden beam searches of the tiny Hugging Face T5 directories.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.14.0 \
        transformers==5.24.0 safetensors
    /tmp/torch/bin/python tests/golden/make_hf_beam_golden.py

writes `hf_beams.npz`, what `generate(num_beams=4)` of `transformers` answers to
200 random prompts, of models that are committed beside this file. Their EOS is
made likely (see `EOS_FACTORS`), so that hypotheses end at many lengths and some
never.

Float32 rounds in other ways elsewhere. A prompt is therefore taken only if its
responses stay what they are when log-probabilities change by 1e-4; how many
were left out is printed.

Arrays:
  prompts uint16 [200, 10]: bytes and EOS, padded on the right with 0.
  <name> uint16 [3, 200, 16]: responses for each of `LENGTH_PENALTIES`, 0 after
    EOS; cut off at 16 tokens.
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
NUM_PROMPTS, PROMPT_LENGTH, MAX_LENGTH, NUM_BEAMS = 200, 10, 16, 4
LENGTH_PENALTIES = 0.6, 1.0, 2.0
# Of the row of the output layer.
EOS_FACTORS = {'hf_t5_v1_0': 1.5, 'hf_t5_v1_1': 1.5, 'hf_t5_umt5': 1.5}
VOCABULARY = 259  # Bytes and special tokens; the others are spare.


class _Noise(transformers.LogitsProcessor):
  """Changes log-probabilities a little."""

  def __init__(self, seed):
    self._generator = torch.Generator().manual_seed(seed)

  def __call__(self, input_ids, scores):
    noise = torch.rand(scores.shape, generator=self._generator)
    return scores + 2e-4 * (noise - 0.5)


def _load(name):
  path = HERE / name
  config = transformers.AutoConfig.from_pretrained(path)
  model_class = getattr(transformers, config.architectures[0])
  model = model_class.from_pretrained(
    path, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  model.lm_head.weight[1] *= EOS_FACTORS[name]
  return model


def _prompts():
  rng = np.random.default_rng(0)
  num = NUM_PROMPTS * 5 // 4
  ends = rng.integers(1, PROMPT_LENGTH, num)[:, None]
  places = np.arange(PROMPT_LENGTH)
  tokens = rng.integers(3, VOCABULARY, (num, PROMPT_LENGTH))
  return np.where(places < ends, tokens, places == ends)


def _search(model, prompts, length_penalty, processors=()):
  tokens = torch.from_numpy(prompts)
  sequences = model.generate(
    input_ids=tokens,
    attention_mask=(tokens != 0).long(),
    do_sample=False,
    num_beams=NUM_BEAMS,
    length_penalty=length_penalty,
    max_new_tokens=MAX_LENGTH,
    # Its cache is too short for a decoder with more layers than the encoder.
    use_cache=False,
    logits_processor=transformers.LogitsProcessorList(processors),
  )[:, 1:].numpy()
  # It goes on with EOS after EOS, because its padding token is 0.
  ended = np.cumsum(sequences == 1, 1) > (sequences == 1)
  padded = np.zeros((len(prompts), MAX_LENGTH), np.uint16)
  padded[:, : sequences.shape[1]] = np.where(ended, 0, sequences)
  return padded


def main():
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  prompts = _prompts()
  firm = np.ones(len(prompts), bool)
  found = {}
  for name in EOS_FACTORS:
    model = _load(name)
    found[name] = np.stack(
      [_search(model, prompts, penalty) for penalty in LENGTH_PENALTIES]
    )
    for index, penalty in enumerate(LENGTH_PENALTIES):
      lengths = 1 + np.where(
        (found[name][index] == 1).any(-1),
        (found[name][index] == 1).argmax(-1),
        MAX_LENGTH,
      )
      print(name, penalty, 'lengths', np.bincount(lengths))
      print(len(np.unique(found[name][index], axis=0)), 'different responses')
      for seed in range(4):
        other = _search(model, prompts, penalty, [_Noise(seed)])
        firm &= (other == found[name][index]).all(-1)
  print(f'{(~firm).sum()} of {len(firm)} prompts are left out')
  taken = np.flatnonzero(firm)[:NUM_PROMPTS]
  if len(taken) < NUM_PROMPTS:
    raise AssertionError('too few prompts')
  np.savez_compressed(
    HERE / 'hf_beams.npz',
    prompts=prompts[taken].astype(np.uint16),
    **{name: responses[:, taken] for name, responses in found.items()},
  )


if __name__ == '__main__':
  main()
