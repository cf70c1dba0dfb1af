"""Makes the tiny T5X checkpoints and golden logits of tests/golden, by T5X.

    PYTHONPATH=<T5X's sources> python tests/oracles/t5x/goldens.py

See README.md beside this file. For each model below, T5X draws a random network
and writes it into folders `tests/golden/t5x_<layout>_<name>/checkpoint_7`:

  legacy: `t5x.checkpoints.Checkpointer`, msgpack and zarr, version 3.
  orbax: `OrbaxCheckpointManagerInterface`, what `t5x.train` writes.
  placeholder: what T5X wrote with Orbax in 2022, which it no longer can: the
    zarr folders are Orbax's of today without its key-value store, and the
    msgpack file has the contents of t5x/testdata/tiny_orbax. T5X restores it.

T5X restores each of them, and computes from what it restored
`tests/golden/t5x_<name>.npz`:
  encoder_tokens int32 [N, prompt_length]: padded on the right with 0.
  target_tokens int32 [N, response_length]: likewise.
  logits float32 [N, response_length, vocab]: of T5X; any where it is padded.
"""

import json
import pathlib
import shutil
import tempfile

from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from t5x import adafactor
from t5x import checkpoints
from t5x import models
from t5x import partitioning
from t5x import utils
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network as minimal

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
STEP = 7
SIZES = dict(
  vocab_size=40,
  emb_dim=8,
  num_heads=4,
  head_dim=5,
  mlp_dim=24,
  dropout_rate=0.0,
)
GATED = ('gelu', 'linear')
# Of each: the network, its settings, the dtype of what is written, whether an
# optimizer's state is, and the layouts.
MODELS = {
  'v1_1': (
    minimal,
    dict(num_encoder_layers=2, num_decoder_layers=1, mlp_activations=GATED),
    jnp.float32,
    False,
    ('legacy', 'orbax'),
  ),
  'v1_0': (
    minimal,
    dict(
      num_encoder_layers=1,
      num_decoder_layers=2,
      mlp_activations=('relu',),
      logits_via_embedding=True,
    ),
    jnp.bfloat16,
    False,
    ('legacy',),
  ),
  'umt5': (
    scalable,
    dict(
      num_encoder_layers=2,
      num_decoder_layers=3,
      mlp_activations=GATED,
      scan_layers=True,
    ),
    jnp.float32,
    True,
    ('legacy', 'orbax', 'placeholder'),
  ),
  'umt5_unrolled': (
    scalable,
    dict(
      num_encoder_layers=1,
      num_decoder_layers=2,
      mlp_activations=GATED,
      logits_via_embedding=True,
      scan_layers=False,
    ),
    jnp.float32,
    False,
    ('legacy',),
  ),
}
PROMPT_LENGTH, RESPONSE_LENGTH = 9, 6


def initializer(network, settings, with_optimizer, partitioner):
  """Makes T5X's model, and what draws or restores its state."""
  config = network.T5Config(**SIZES, **settings)
  optimizer = adafactor.Adafactor(
    decay_rate=0.8,
    step_offset=0,
    logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )
  model = models.EncoderDecoderModel(
    module=network.Transformer(config),
    input_vocabulary=None,
    output_vocabulary=None,
    optimizer_def=optimizer,
  )
  shapes = {
    'encoder_input_tokens': (1, PROMPT_LENGTH),
    'decoder_input_tokens': (1, RESPONSE_LENGTH),
    'decoder_target_tokens': (1, RESPONSE_LENGTH),
  }
  return model, utils.TrainStateInitializer(
    optimizer_def=optimizer if with_optimizer else None,
    init_fn=model.get_initial_variables,
    input_shapes=shapes,
    partitioner=partitioner,
  )


def randomise(params, dtype):
  """Replaces weights by random ones that a dtype can hold."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    query = 'query' in name
    noise = rng.normal(size=leaf.shape)
    if 'scale' in name:
      noise = 1 + 0.2 * noise
    elif 'kernel' in name:
      emb = SIZES['emb_dim']
      # T5 divides its queries by the root of the head size here alone.
      noise /= np.sqrt(emb * (SIZES['head_dim'] if query else 1))
    noise = noise.astype(dtype).astype(np.float32)
    return jax.device_put(noise, leaf.sharding)

  return jax.tree_util.tree_map_with_path(draw, params)


def write(layout, folder, state, partitioner, dtype):
  """Has T5X write a state."""
  if layout == 'legacy':
    checkpoints.Checkpointer(
      state, partitioner, str(folder), save_dtype=dtype
    ).save(state)
    return
  if layout == 'orbax':
    manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(folder), state, partitioner, save_dtype=dtype
    )
    manager.save(state)
    manager.wait_until_finished()
    return
  tree = state.state_dict()
  step = folder / f'checkpoint_{STEP}' / 'state'
  ocp.PyTreeCheckpointer(use_ocdbt=False).save(
    step,
    tree,
    save_args=jax.tree.map(lambda _: ocp.SaveArgs(dtype=dtype), tree),
  )
  places = {
    path: f'PLACEHOLDER://{".".join(path)}'
    for path in traverse_util.flatten_dict(tree)
  }
  for path in step.iterdir():
    if path.is_file():
      path.unlink()
    elif not path.name.startswith(('target.', 'state.')):
      shutil.rmtree(path)
  (step / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(traverse_util.unflatten_dict(places))
  )


def tokens(rng, count, length):
  """Ragged rows, padded on the right with 0."""
  lengths = rng.integers(2, length + 1, count)
  lengths[0] = length
  drawn = rng.integers(2, SIZES['vocab_size'], (count, length))
  return np.where(np.arange(length) < lengths[:, None], drawn, 0).astype(
    np.int32
  )


def main():
  """Writes every folder and array anew."""
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
  )
  for name, (network, settings, dtype, optimizer, layouts) in MODELS.items():
    rng = np.random.default_rng(1)
    encoder = tokens(rng, 3, PROMPT_LENGTH)
    targets = tokens(rng, 3, RESPONSE_LENGTH)
    batch = {
      'encoder_input_tokens': encoder,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': targets,
    }
    for layout in layouts:
      folder = GOLDEN / f't5x_{layout}_{name}'
      shutil.rmtree(folder, ignore_errors=True)
      step = folder / f'checkpoint_{STEP}'
      model, start = initializer(
        network, settings, optimizer and layout != 'placeholder', partitioner
      )
      state = start.from_scratch(jax.random.PRNGKey(0))
      params = randomise(state.params, dtype)
      state = state.replace_params(params).replace_step(jnp.array(STEP))
      with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        write(layout, scratch, state, partitioner, dtype)
        shutil.copytree(scratch / step.name, step)
      restored, _ = utils.create_checkpoint_manager_and_restore(
        start,
        partitioner,
        utils.RestoreCheckpointConfig(
          path=str(step), mode='specific', dtype='float32'
        ),
        str(step),
        None,
        use_orbax=True,
      )
      jax.tree.map(np.testing.assert_array_equal, restored.params, params)
      logits = model._compute_logits(restored.params, batch)
      size = sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
      count = sum(f.is_file() for f in folder.rglob('*'))
      print(json.dumps({'folder': folder.name, 'files': count, 'bytes': size}))
    np.savez_compressed(
      GOLDEN / f't5x_{name}.npz',
      encoder_tokens=encoder,
      target_tokens=targets,
      logits=np.asarray(logits),
    )


if __name__ == '__main__':
  main()
