"""Writes random models for other libraries, and what ours make of texts.

    PYTHONPATH=.:tests/support python tests/oracles/write_exports.py DIR

README.md says what is in DIR. Of every directory NAME, `NAME.npz` has what our
model gives: see `_expected`. `texts.json` has the texts.
"""

import dataclasses
import io
import json
import pathlib
import sys

import jax
import numpy as np
import sentencepiece
import tiny_models
import tiny_pali

from perlhf_jax.core import tree_paths
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf_output
from perlhf_jax.interop import output
from perlhf_jax.interop import peft
from perlhf_jax.interop import reward_directory
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5_config
from perlhf_jax.sampling import beam
from perlhf_jax.sampling import sampler

PROMPTS = (
  'Order: large latte, oat milk.',
  'hi',
  'Translate: ¿Dónde está el café?',
  'customer: two tickets, please.  assistant: Which city are you in?\n'
  'customer: In Lisbon, near the river, and seats on the aisle if there are '
  'any left.\n\nassistant: There is a show at nine.',
)
RESPONSES = (
  'One large latte with oat milk.',
  'Hello!\nWhat would you like  to drink today?',
  'Where is the café? — “là-bas” ☕',
  'Two.',
)
GREEDY_LENGTH = 24
NUM_BEAM_PROMPTS, NUM_BEAMS, BEAM_LENGTH = 200, 4, 24
LENGTH_PENALTIES = 0.6, 1.0, 2.0
EOS_FACTOR = 2.0

# No two widths are equal. The vocabulary has rows to spare.
GATED = t5_config.T5Config(
  vocab_size=512,
  emb_dim=16,
  num_heads=3,
  num_encoder_layers=2,
  num_decoder_layers=3,
  head_dim=4,
  mlp_dim=20,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)
TIED = dataclasses.replace(GATED, logits_via_embedding=True)
RELU = dataclasses.replace(TIED, mlp_activations=('relu',))
UMT5 = dataclasses.replace(GATED, relpos_bias_per_layer=True)
PALI = dataclasses.replace(tiny_pali.CONFIG, vocab_size=512)

USUAL = lora_lib.LoraConfig(rank=3, alpha=5.0)
RS = dataclasses.replace(USUAL, rs_lora=True, dropout_rate=0.1)
DORA = dataclasses.replace(USUAL, dora=True)
# Weaker: large weights saturate softmax, which magnifies rounding.
EVERYTHING = dataclasses.replace(USUAL, alpha=1.0, target_modules=('.*',))
SOME = dataclasses.replace(
  USUAL, target_modules=('decoder/layers_1/.*', '.*/query')
)


def _sentencepiece(**options):
  """Trains a vocabulary on the texts."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*PROMPTS, *RESPONSES] * 3),
    model_writer=model,
    vocab_size=360,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
    **options,
  )
  path = pathlib.Path(sys.argv[1]) / 'vocabulary.model'
  path.write_bytes(model.getvalue())
  try:
    loaded = vocabularies.sentencepiece_vocabulary(str(path), extra_ids=20)
    return vocabularies.from_dict(vocabularies.to_dict(loaded))
  finally:
    path.unlink()


def _tokens(vocabulary, texts):
  rows = [[*vocabulary.encode(text), 1] for text in texts]
  padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, ids in zip(padded, rows, strict=True):
    row[: len(ids)] = ids
  return padded


def _pictures():
  side = PALI.image_size
  rng = np.random.default_rng(3)
  return rng.integers(0, 256, (len(PROMPTS), side, side, 3)).astype(np.uint8)


def _params(config):
  """Random weights; some responses end, because a longer row wins oftener."""
  flat = tree_paths.flatten(tiny_models.params(config))
  path = (
    'token_embedder/embedding'
    if config.logits_via_embedding
    else 'decoder/logits_dense/kernel'
  )
  # The cached arrays are not ours to change.
  flat[path] = flat[path].copy()
  row = flat[path] if config.logits_via_embedding else flat[path].T
  row[1] *= EOS_FACTOR
  return tree_paths.unflatten(flat)


def _expected(model, variables, vocabulary, heads=None):
  """What our model gives.

  Arrays: `prompts`, `responses` int32 `[N, length]`; `logits` float32
  `[N, response_length, vocab]`; `logprobs` float64 `[N]`; `states` float32 of
  the encoder; `greedy` int32 `[N, 24]`; of reward models, `scores` `[N]`.
  """
  prompts = prompts_lib.of_tokens(_tokens(vocabulary, PROMPTS))
  if model.config.image_size is not None:
    prompts = prompts.replace(
      images=_pictures()[:, None],
      image_mask=np.ones((len(PROMPTS), 1), bool),
    )
  responses = _tokens(vocabulary, RESPONSES)
  inputs = np.pad(responses, ((0, 0), (1, 0)))[:, :-1]
  logits = np.asarray(jax.jit(model.apply)(variables, prompts, inputs))
  encoded = jax.jit(lambda v: model.apply(v, prompts, method='encode'))(
    variables
  )
  logprobs = jax.nn.log_softmax(logits.astype(np.float64))
  taken = np.take_along_axis(
    np.asarray(logprobs), responses[..., None], axis=-1
  )[..., 0]
  sampling = sampler.SamplingConfig(max_length=GREEDY_LENGTH, temperature=0.0)
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  greedy = jax.jit(
    lambda variables: sampler.sample(model, variables, prompts, keys, sampling)
  )(variables)
  arrays = {
    'prompts': np.asarray(prompts.tokens),
    'responses': responses,
    'logits': logits,
    'logprobs': (taken * (responses != 0)).sum(1),
    'states': np.where(encoded.mask[..., None], encoded.states, 0.0),
    'greedy': np.asarray(greedy.tokens)[:, 0],
  }
  if heads is not None:
    arrays['scores'] = np.asarray(
      reward_model.RewardModel(model).score(
        {**variables, 'heads': heads}, prompts, responses, responses != 0
      )
    )
  return arrays


def _beams(model, variables):
  """What beam search gives for random prompts.

  Arrays: `beam_prompts` int32 `[200, 12]`; `beams_<length_penalty>` int32
  `[200, 24]`.
  """
  tokens, _ = tiny_models.ragged_tokens(
    5, NUM_BEAM_PROMPTS, 12, model.config.vocab_size
  )
  arrays = {'beam_prompts': tokens}
  for penalty in LENGTH_PENALTIES:
    config = beam.BeamConfig(NUM_BEAMS, BEAM_LENGTH, penalty)
    search = jax.jit(
      lambda variables, config=config: beam.beam_search(
        model, variables, prompts_lib.of_tokens(tokens), config
      )
    )
    samples, _ = search(variables)
    arrays[f'beams_{penalty}'] = np.asarray(samples.tokens)[:, 0]
  return arrays


class _Exports:
  """The directory of exports."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def write(self, name, contents, arrays):
    output.write(contents, self._path / name, max_shard_size=40_000)
    np.savez_compressed(self._path / f'{name}.npz', **arrays)
    print('wrote', name)

  def base(self, name, config, vocabulary, dtype='float32', model_type=None):
    params = _params(config)
    contents = hf_output.contents(
      params,
      config,
      vocabulary=vocabularies.to_dict(vocabulary),
      dtype=dtype,
      model_type=model_type,
    )
    params = jax.tree.map(
      lambda leaf: leaf.astype(output.DTYPES[dtype]).astype(np.float32), params
    )
    model, variables = encoder_decoder.make_model(config), {'params': params}
    arrays = _expected(model, variables, vocabulary) | _beams(model, variables)
    self.write(name, contents, arrays)

  def adapter(self, name, base, config, lora_config, vocabulary, heads=None):
    model, lora = tiny_models.adapted(lora_config, config)
    variables = {'params': _params(config), 'lora': lora}
    contents = peft.contents(
      lora,
      lora_config,
      config,
      # The reader's business: DIR may move.
      base=base,
      heads=heads,
    )
    self.write(name, contents, _expected(model, variables, vocabulary, heads))

  def merged(self, name, config, lora_config, vocabulary, heads=None):
    model, lora = tiny_models.adapted(lora_config, config)
    params = _params(config)
    merged = lora_lib.merge_lora(params, lora, lora_config)
    describe = hf_output.contents
    arguments = (merged, config)
    if heads is not None:
      describe = reward_directory.contents
      arguments = (merged, heads, config)
    contents = describe(*arguments, vocabulary=vocabularies.to_dict(vocabulary))
    variables = {'params': params, 'lora': lora}
    self.write(name, contents, _expected(model, variables, vocabulary, heads))


def _heads(config):
  rng = np.random.default_rng(2)
  kernel = rng.normal(size=(config.emb_dim, 1)).astype(np.float32)
  return {'score': {'kernel': kernel, 'bias': np.full(1, 0.25, np.float32)}}


def main():
  path = pathlib.Path(sys.argv[1])
  path.mkdir(parents=True)
  texts = {'prompts': PROMPTS, 'responses': RESPONSES}
  (path / 'texts.json').write_text(json.dumps(texts))
  np.save(path / 'pictures.npy', _pictures())
  published = _sentencepiece()
  own = _sentencepiece(
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    user_defined_symbols=['\n'],
  )
  letters = vocabularies.byte_vocabulary(125)
  exports = _Exports(path)
  exports.base('t5_v1_0', RELU, published)
  exports.base('t5_v1_1', GATED, letters)
  exports.base('t5_gated_tied', TIED, own)
  exports.base('mt5', GATED, published, model_type='mt5')
  exports.base('umt5', UMT5, own)
  exports.base('bfloat16', GATED, published, 'bfloat16')
  exports.merged('merged', GATED, USUAL, published)
  exports.adapter('adapter_usual', 't5_v1_1', GATED, USUAL, letters)
  exports.adapter('adapter_rs', 't5_v1_1', GATED, RS, letters)
  exports.adapter('adapter_dora', 't5_v1_1', GATED, DORA, letters)
  exports.adapter('adapter_everything', 't5_v1_1', GATED, EVERYTHING, letters)
  exports.adapter('adapter_some', 't5_v1_1', GATED, SOME, letters)
  exports.adapter('adapter_tied', 't5_gated_tied', TIED, EVERYTHING, own)
  exports.adapter('adapter_umt5', 'umt5', UMT5, USUAL, own)
  heads = _heads(GATED)
  exports.merged('reward', GATED, USUAL, published, heads)
  exports.adapter('reward_adapter', 't5_v1_1', GATED, USUAL, letters, heads)
  exports.merged('pali', PALI, USUAL, own, _heads(PALI))


if __name__ == '__main__':
  main()
