import dataclasses
import functools
import json

import hf_directories
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft_directories
import pytest
from safetensors import numpy as safetensors_numpy
import tiny_models
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import hf
from perlhf_jax.interop import output
from perlhf_jax.interop import peft
from perlhf_jax.interop import peft_config
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import policy
from perlhf_jax.models import prompts as prompts_lib

GOLDEN = hf_directories.GOLDEN
BASE = GOLDEN / 'hf_t5_v1_1'
NAMES = ('plain', 'patterns')
POSITIONS = (0, 2)
TOLERANCE = 1e-4
HEAD = {
  'score': {
    'kernel': np.arange(16, dtype=np.float32)[:, None],
    'bias': np.full(1, 0.5, np.float32),
  }
}
DEFAULT = lora_lib.LoraConfig(rank=3, alpha=5.0)

every_adapter = pytest.mark.parametrize('name', NAMES)


@functools.cache
def _base():
  config = hf.load_config(BASE)
  return config, hf.load_params(BASE, config)


@functools.cache
def _golden():
  with (
    np.load(GOLDEN / 'hf_t5_v1_1.npz') as inputs,
    np.load(GOLDEN / 'hf_peft.npz') as arrays,
  ):
    return {**inputs, **arrays}


def _model(lora_config, config):
  adapters = lora_lib.resolve(
    lora_config, encoder_decoder.dense_module_paths(config)
  )
  return encoder_decoder.make_model(config, adapters)


def _prompts(golden):
  return prompts_lib.Prompts(golden['encoder_tokens'], golden['encoder_mask'])


@functools.partial(jax.jit, static_argnames='model')
def _run(model, variables, prompts, targets):
  inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  logprobs = policy.response_logprobs(
    model, variables, prompts, targets[:, None]
  )
  return model.apply(variables, prompts, inputs), logprobs[:, 0]


def _forward(adapter, lora=None):
  config, params = _base()
  golden = _golden()
  variables = {'params': params, 'lora': lora or adapter.lora}
  outputs = _run(
    _model(adapter.config, config),
    variables,
    _prompts(golden),
    golden['target_tokens'],
  )
  return tuple(map(np.asarray, outputs))


def _error(function, *arguments, **keywords):
  with pytest.raises(errors.CheckpointError) as caught:
    function(*arguments, **keywords)
  return str(caught.value)


def _assert_same(tree, expected):
  flat, expected = tree_paths.flatten(tree), tree_paths.flatten(expected)
  assert list(flat) == list(expected)
  for path in flat:
    np.testing.assert_array_equal(flat[path], expected[path], err_msg=path)


@every_adapter
def test_logits_and_logprobs_are_those_of_peft(name):
  golden = _golden()
  adapter = peft.load(GOLDEN / 'hf_peft' / name, _base()[0])
  logits, logprobs = _forward(adapter)
  positions = golden['logit_positions'][:, list(POSITIONS), None]
  np.testing.assert_allclose(
    np.take_along_axis(logits, positions, 1),
    golden[f'{name}/logits'],
    atol=TOLERANCE,
    rtol=0,
  )
  sums = (logprobs * golden['target_mask']).sum(1, dtype=np.float64)
  np.testing.assert_allclose(
    sums, golden[f'{name}/logprobs'], atol=TOLERANCE, rtol=1e-6
  )


@every_adapter
def test_every_adapter_counts(name):
  adapter = peft.load(GOLDEN / 'hf_peft' / name, _base()[0])
  logits, _ = _forward(adapter)
  flat = tree_paths.flatten(adapter.lora)
  assert len(flat) > 20
  for path in list(flat)[1::6]:
    less = tree_paths.unflatten(flat | {path: np.zeros_like(flat[path])})
    assert np.abs(_forward(adapter, less)[0] - logits).max() > TOLERANCE, path


def test_the_configuration_of_a_plain_adapter():
  adapter = peft.load(GOLDEN / 'hf_peft' / 'plain', _base()[0])
  assert dataclasses.replace(
    adapter.config, target_modules=()
  ) == lora_lib.LoraConfig(
    rank=4, alpha=8.0, dropout_rate=0.1, target_modules=()
  )
  assert adapter.base == 'hf_t5_v1_1' and adapter.heads == {}
  paths = lora_lib.resolve(
    adapter.config, encoder_decoder.dense_module_paths(_base()[0])
  ).module_paths
  assert {path.rpartition('/')[2] for path in paths} == {'query', 'value'}
  assert len(paths) == 2 * (2 + 2 * 3)
  # The same, where layers are stacked.
  stacked = dataclasses.replace(_base()[0], scan_layers=True)
  paths = lora_lib.resolve(
    adapter.config, encoder_decoder.dense_module_paths(stacked)
  ).module_paths
  assert len(paths) == 2 * (1 + 2)


def test_other_ranks_and_scales_are_padded_and_corrected():
  path = GOLDEN / 'hf_peft' / 'patterns'
  adapter = peft.load(path, _base()[0])
  assert adapter.config.rank == 5 and adapter.config.rs_lora
  assert adapter.config.scale == pytest.approx(3 / np.sqrt(2))
  tensors = safetensors_numpy.load_file(path / peft.WEIGHTS)

  def update(module):
    a, b = (tensors[f'base_model.model.{module}.lora_{x}.weight'] for x in 'AB')
    return (b @ a).T

  def ours(layer):
    flat = tree_paths.flatten(adapter.lora)
    product = flat[f'{layer}/lora/lora_a'] @ flat[f'{layer}/lora/lora_b']
    return product * adapter.config.scale

  for module, layer, scale in (
    (
      'decoder.block.0.layer.1.EncDecAttention.q',
      'decoder/layers_0/encoder_decoder_attention/query',
      3 / np.sqrt(5),
    ),
    (
      'encoder.block.1.layer.1.DenseReluDense.wo',
      'encoder/layers_1/mlp/wo',
      7 / np.sqrt(1),
    ),
    (
      'decoder.block.1.layer.0.SelfAttention.k',
      'decoder/layers_1/self_attention/key',
      2 / np.sqrt(2),
    ),
    ('lm_head', 'decoder/logits_dense', 3 / np.sqrt(2)),
  ):
    np.testing.assert_allclose(ours(layer), scale * update(module), atol=1e-6)
  assert not any('wi_1' in path for path in tree_paths.flatten(adapter.lora))


def test_training_goes_on_and_keeps_ranks():
  config, params = _base()
  golden = _golden()
  adapter = peft.load(GOLDEN / 'hf_peft' / 'patterns', config)
  model = _model(adapter.config, config)

  def loss(lora):
    logprobs = policy.response_logprobs(
      model,
      {'params': params, 'lora': lora},
      _prompts(golden),
      golden['target_tokens'][:, None],
    )
    return -jnp.sum(logprobs[:, 0] * golden['target_mask']) / len(logprobs)

  optimizer = optax.adam(0.01)
  step = jax.jit(jax.value_and_grad(loss))
  lora, losses = adapter.lora, []
  state = optimizer.init(lora)
  for _ in range(3):
    value, gradients = step(lora)
    losses.append(float(value))
    updates, state = optimizer.update(gradients, state)
    lora = optax.apply_updates(lora, updates)
  assert losses[2] < losses[1] < losses[0] - 1
  before = tree_paths.flatten(adapter.lora)
  for path, leaf in tree_paths.flatten(lora).items():
    axis = 0 if path.endswith('lora_a') else 1
    unused = ~before[path].any(axis)
    assert not np.asarray(leaf).any(axis)[unused].any()
    assert np.asarray(leaf).any(axis)[~unused].all()


def test_what_peft_wrote_is_written_again_as_it_was(tmp_path):
  source = GOLDEN / 'hf_peft' / 'plain'
  config, _ = _base()
  adapter = peft.load(source, config)
  contents = peft.contents(
    adapter.lora, adapter.config, config, base='hf_t5_v1_1'
  )
  output.write(contents, tmp_path)
  tensors = safetensors_numpy.load_file(source / peft.WEIGHTS)
  saved = safetensors_numpy.load_file(tmp_path / peft.WEIGHTS)
  assert sorted(saved) == sorted(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(saved[name], tensor)
  raw = json.loads((source / peft.CONFIG).read_text())
  written = json.loads((tmp_path / peft.CONFIG).read_text())
  raw['target_modules'].sort()
  assert written == {key: raw[key] for key in written}


def _random(lora_config, config):
  return tiny_models.adapted(lora_config, config)[1]


@pytest.mark.parametrize(
  ('fields', 'targets'),
  [
    ({}, ['k', 'o', 'q', 'v']),
    ({'rs_lora': True, 'dropout_rate': 0.25}, ['k', 'o', 'q', 'v']),
    ({'alpha': None, 'rank': 1}, ['k', 'o', 'q', 'v']),
    ({'dora': True}, ['k', 'o', 'q', 'v']),
    ({'alpha': 0.75}, ['k', 'o', 'q', 'v']),
    (
      {'target_modules': ('.*',)},
      ['k', 'lm_head', 'o', 'q', 'v', 'wi_0', 'wi_1', 'wo'],
    ),
    (
      {
        'target_modules': (
          'encoder/layers_1/mlp/wo',
          '.*/query',
          'decoder/.*/encoder_decoder_attention/key',
        )
      },
      [
        *(f'decoder.block.{i}.layer.1.EncDecAttention.k' for i in range(3)),
        'encoder.block.1.layer.1.DenseReluDense.wo',
        'q',
      ],
    ),
  ],
)
def test_round_trip(fields, targets, tmp_path):
  config, _ = _base()
  lora_config = dataclasses.replace(DEFAULT, **fields)
  lora = _random(lora_config, config)
  output.write(
    peft.contents(lora, lora_config, config, base='DIR', heads=HEAD), tmp_path
  )
  raw = json.loads((tmp_path / peft.CONFIG).read_text())
  assert raw['target_modules'] == targets
  assert raw['task_type'] == 'SEQ_2_SEQ_LM'
  again = peft.load(tmp_path, config)
  assert again.base == peft.base_of(tmp_path) == 'DIR'
  _assert_same(again.lora, lora)
  _assert_same(again.heads, HEAD)
  assert raw['use_dora'] is lora_config.dora
  for field in ('rank', 'scale', 'rs_lora', 'dropout_rate', 'dora'):
    assert getattr(again.config, field) == getattr(lora_config, field)
  paths = encoder_decoder.dense_module_paths(config)
  assert lora_lib.resolve(again.config, paths).module_paths == (
    lora_lib.resolve(lora_config, paths).module_paths
  )


def test_the_usual_sites_keep_their_pattern(tmp_path):
  config, _ = _base()
  lora = _random(DEFAULT, config)
  output.write(peft.contents(lora, DEFAULT, config, base='DIR'), tmp_path)
  assert peft.load(tmp_path, config).config == DEFAULT


@every_adapter
def test_adapters_of_other_modules_than_the_configuration_says(name, tmp_path):
  config, _ = _base()

  def edit(tensors):
    del tensors[
      'base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight'
    ]
    tensors['base_model.model.shared.lora_embedding_A'] = np.ones(
      (2, 384), np.float32
    )

  path = peft_directories.edit(tmp_path / 'x', name, edit)
  error = _error(peft.load, path, config)
  assert str(path / peft.WEIGHTS) in error
  assert 'missing tensors: base_model.model.encoder.block.0.layer.0' in error
  assert (
    'unexpected tensors: base_model.model.shared.lora_embedding_A.' in error
  )


def test_an_adapter_of_another_base(tmp_path):
  path = GOLDEN / 'hf_peft' / 'plain'
  config, _ = _base()
  wider = dataclasses.replace(config, emb_dim=32)
  error = _error(peft.load, path, wider)
  assert 'has shape [4, 16], and should have [4, 32]' in error
  assert 'base' in error
  deeper = dataclasses.replace(config, num_decoder_layers=4)
  assert 'missing tensors: base_model.model.decoder.block.3' in _error(
    peft.load, path, deeper
  )
  shallower = dataclasses.replace(config, num_decoder_layers=2)
  assert 'unexpected tensors: base_model.model.decoder.block.2' in _error(
    peft.load, path, shallower
  )
  # A rank that disagrees with the tensors.
  path = peft_directories.edit(tmp_path / 'x', r=2)
  assert 'has shape [4, 16], and should have [2, 16]' in _error(
    peft.load, path, config
  )


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'peft_type': 'IA3'}, "peft_type is 'IA3'; only LORA"),
    ({'task_type': 'SEQ_CLS'}, "task_type is 'SEQ_CLS'; supported is SEQ_2"),
    ({'bias': 'lora_only'}, "bias is 'lora_only'"),
    ({'use_dora': 3}, 'use_dora is 3'),
    ({'use_bdlora': True}, 'use_bdlora is set'),
    (
      {'modules_to_save': ['lm_head'], 'layers_to_transform': [1]},
      'layers_to_transform, modules_to_save are set, .*merge_and_unload',
    ),
    ({'something_of_the_future': 3}, 'something_of_the_future is set'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights is 'pissa'"),
    ({'r': 0}, 'r is 0'),
    ({'lora_alpha': 0, 'r': True}, 'r is True; .*lora_alpha is 0; it must'),
    ({'lora_dropout': 1}, 'lora_dropout is 1'),
    ({'lora_dropout': 'no'}, "lora_dropout is 'no'"),
    ({'target_modules': None}, 'target_modules is None'),
    ({'target_modules': ['q_proj']}, 'no dense layer of this T5; it has enc'),
    (
      {'target_modules': '.*(q'},
      r"'\.\*\(q' is not a regular expression",
    ),
    ({'rank_pattern': {'q': 2.5}}, "rank_pattern is {'q': 2.5}; it must be"),
    ({'rank_pattern': [3]}, r'rank_pattern is \[3\]; it must be a dict'),
    ({'alpha_pattern': {'q': -1}}, "alpha_pattern is {'q': -1}; it must be"),
    # Bounds, and patterns that would run for ever or fill the memory.
    ({'r': 10**9}, 'r is 1000000000; it must be .* from 1 to 65,536'),
    ({'lora_alpha': 10**400}, 'lora_alpha is 1000'),
    (
      {'target_modules': '(.+?)' * 8 + r'\8[#!]'},
      'takes more than 1 s to match',
    ),
    ({'target_modules': '(q{1000}){1000}'}, 'counts repetitions'),
    ({'target_modules': 'q' * 3000}, '3,000 characters; at most 2,000'),
    ({'target_modules': '(' * 1900}, 'is not a regular expression'),
    ({'target_modules': [['q']]}, r"target_modules is \[\['q'\]\]"),
    ({'exclude_modules': 3}, 'exclude_modules is 3'),
    ({'base_model_name_or_path': 3}, 'base_model_name_or_path is 3'),
  ],
)
def test_what_is_not_supported_is_named(keys, message, tmp_path):
  path = peft_directories.edit(tmp_path / 'x', **keys)
  with pytest.raises(errors.CheckpointError, match=message) as caught:
    peft.load(path, _base()[0])
  assert str(path / peft.CONFIG) in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
  config, _ = _base()
  path = peft_directories.edit(tmp_path / 'x')
  content = (path / peft.WEIGHTS).read_bytes()
  (path / peft.WEIGHTS).write_bytes(content[:-9])
  assert 'cannot be read as safetensors' in _error(peft.load, path, config)
  (path / peft.WEIGHTS).unlink()
  assert f'lacks {peft.WEIGHTS}' in _error(peft.load, path, config)
  (path / 'adapter_model.bin').write_bytes(b'')
  assert 'only as adapter_model.bin' in _error(peft.load, path, config)
  (path / peft.CONFIG).write_text('{')
  assert 'cannot be read as JSON' in _error(peft.load, path, config)
  (path / peft.CONFIG).unlink()
  assert f'has no {peft.CONFIG}' in _error(peft.load, path, config)
  assert peft.is_peft_directory(path)


def test_is_peft_directory(tmp_path):
  assert peft.is_peft_directory(GOLDEN / 'hf_peft' / 'plain')
  assert not peft.is_peft_directory(BASE)
  assert not peft.is_peft_directory(tmp_path / 'absent')
  assert not hf.is_hf_directory(GOLDEN / 'hf_peft' / 'plain')


def test_what_has_no_place_in_a_peft_directory():
  config, params = _base()
  lora = _random(DEFAULT, config)
  tuned = {'decoder': {'decoder_norm': params['decoder']['decoder_norm']}}

  def write(lora=lora, config=config, **keywords):
    return peft.contents(lora, DEFAULT, config, base='DIR', **keywords)

  assert 'decoder/decoder_norm/scale were trained in full' in _error(
    write, tuned=tuned
  )
  assert 'There are no adapters' in _error(write, {})
  flat = tree_paths.flatten(lora)
  vit = tree_paths.unflatten(
    {'vit/Transformer/encoderblock_0/x/lora/lora_a': np.ones((2, 3))}
  )
  assert 'vit/Transformer/encoderblock_0/x/lora do not adapt' in _error(
    write, vit
  )
  other = 'encoder/layers_0/attention/key/lora/lora_a'
  less = {path: leaf for path, leaf in flat.items() if path != other}
  assert f'missing parameters: {other}' in _error(
    write, tree_paths.unflatten(less)
  )
  assert 'should have [16, 3]' in _error(
    write, tree_paths.unflatten(flat | {other: np.ones((16, 2))})
  )
  assert 'missing parameters: score/bias' in _error(
    write, heads={'score': {'kernel': np.ones((16, 1))}}
  )
  assert 'PEFT cannot load a PaLI' in _error(
    write, config=tiny_pali.CONFIG, heads=HEAD
  )


def test_names_of_modules_are_those_of_the_t5_of_a_pali():
  assert peft_config.modules(tiny_pali.CONFIG) == peft_config.modules(
    tiny_models.CONFIG
  )
