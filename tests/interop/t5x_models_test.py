"""Our models behind T5X's interface; needs T5X, see tests/oracles/t5x."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5x_directories

from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.sampling import sampler

pytest.importorskip('t5x', reason='T5X is not installed')

# A T5X network, its settings beside the sizes, and T5X's own checkpoint.
MODELS = {
  'v1_1': ('t5x.examples.t5.network', t5x_directories.LEGACY),
  'umt5': ('t5x.examples.scalable_t5.network', t5x_directories.SCANNED),
}
each_model = pytest.mark.parametrize('name', MODELS)


def _vocabulary():
  seqio = importlib.import_module('seqio')
  return seqio.PassThroughVocabulary(size=40, eos_id=1)


def _model(path, **settings):
  t5x_models = importlib.import_module('perlhf_jax.interop.t5x_models')
  vocabulary = _vocabulary()
  return t5x_models.EncoderDecoderModel(
    vocabulary, vocabulary, checkpoint=str(path), **settings
  )


def _theirs(name, path):
  """T5X's own network of a checkpoint's sizes."""
  network = importlib.import_module(MODELS[name][0])
  config = t5x.load_config(path)
  return network.Transformer(
    network.T5Config(
      **{
        field: getattr(config, field)
        for field in (
          *('vocab_size', 'emb_dim', 'num_heads', 'num_encoder_layers'),
          *('num_decoder_layers', 'head_dim', 'mlp_dim', 'mlp_activations'),
        )
      }
    )
  )


def _weights(path):
  """Weights as T5X's own loader reads them."""
  checkpoints = importlib.import_module('t5x.checkpoints')
  step = str(path / t5x_directories.STEP)
  target = checkpoints.load_t5x_checkpoint(step)['target']
  return jax.tree.map(jnp.asarray, target)


@each_model
def test_variables_are_those_of_t5x(name):
  path = MODELS[name][1]
  shapes = {'encoder_input_tokens': (1, 4), 'decoder_input_tokens': (1, 4)}
  model = _model(path)
  found = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  tokens = jnp.ones((1, 4), jnp.int32)
  expected = jax.eval_shape(
    lambda: _theirs(name, path).init(
      jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
    )
  )

  def names(variables):
    return tree_paths.flatten(variables['params_axes'])

  def sizes(variables):
    flat = tree_paths.flatten(variables['params'])
    return {path: leaf.shape for path, leaf in flat.items()}

  assert sizes(found) == sizes(expected)
  assert names(found) == names(expected)


@each_model
def test_logits_are_those_of_t5x(name):
  path = MODELS[name][1]
  with np.load(t5x_directories.GOLDEN / f't5x_{name}.npz') as golden:
    encoder, targets = golden['encoder_tokens'], golden['target_tokens']
    logits = golden['logits']
  batch = {
    'encoder_input_tokens': encoder,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }
  batch = jax.tree.map(jnp.asarray, batch)
  model, params = _model(path), _weights(path)
  found = np.asarray(model._compute_logits(params, batch))
  mask = targets > 0
  np.testing.assert_allclose(found[mask], logits[mask], rtol=0, atol=1e-5)
  logprobs = np.asarray(jax.nn.log_softmax(logits))
  scores = np.take_along_axis(logprobs, targets[..., None], -1)[..., 0] * mask
  np.testing.assert_allclose(
    model.score_batch(params, batch), scores.sum(-1), rtol=0, atol=1e-4
  )
  with pytest.raises(errors.ConfigError, match='no packed examples'):
    model._compute_logits(params, batch | {'encoder_segment_ids': encoder})


@each_model
def test_greedy_decoding_is_that_of_our_sampler(name):
  decoding = importlib.import_module('t5x.decoding')
  path = MODELS[name][1]
  config = t5x.load_config(path)

  def greedy(**arguments):
    return decoding.temperature_sample(**arguments, temperature=0.0)

  with np.load(t5x_directories.GOLDEN / f't5x_{name}.npz') as golden:
    encoder = golden['encoder_tokens']
  model = _model(path, decode_fn=greedy)
  batch = {
    'encoder_input_tokens': jnp.asarray(encoder),
    'decoder_input_tokens': jnp.zeros((len(encoder), 10), jnp.int32),
  }
  found = model.predict_batch(_weights(path), batch, jax.random.PRNGKey(0))
  expected = sampler.sample(
    t5.T5(config),
    {'params': t5x.load_params(path, config)},
    prompts.of_tokens(jnp.asarray(encoder)),
    jax.random.split(jax.random.key(0), len(encoder)),
    sampler.SamplingConfig(max_length=10, temperature=0.0),
  )
  np.testing.assert_array_equal(found, expected.tokens[:, 0])
  assert len(np.unique(expected.tokens)) > 3
  with pytest.raises(errors.ConfigError, match='prompt_with_targets'):
    model.predict_batch_with_aux({}, batch, prompt_with_targets=True)


def test_one_of_checkpoint_and_config_is_needed():
  t5x_models = importlib.import_module('perlhf_jax.interop.t5x_models')
  path = str(t5x_directories.LEGACY)
  for arguments in (
    {},
    {'checkpoint': path, 'config': t5x.load_config(path)},
  ):
    with pytest.raises(errors.ConfigError, match='a checkpoint or a config'):
      t5x_models.EncoderDecoderModel(None, None, **arguments)
