import jax
import jax.numpy as jnp
import numpy as np
import program_results
import pytest
import tiny_models

from perlhf_jax.core import errors
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement
from perlhf_jax.training import topologies

MESHES = ((8, 1, 1), (2, 2, 2), (1, 4, 2))
TWO_SLICES = 'two slices'  # The mesh (2, 2, 2) of two.
QUERY = 'params/encoder/layers_0/attention/query'


@pytest.fixture(scope='module')
def eight(preloaded, tmp_path_factory):
  """What tests/training/mesh_program.py found on eight simulated devices."""
  folder = tmp_path_factory.mktemp('mesh')
  results = program_results.run(preloaded, 'training/mesh_program.py', folder)
  assert results['devices'] == 8
  return results


@pytest.mark.parametrize('tuning', ['lora', 'full'])
@pytest.mark.parametrize('shape', [*MESHES, TWO_SLICES])
def test_a_step_is_the_same_on_any_mesh(eight, shape, tuning):
  alone = eight['runs'][(1, 1, 1), tuning]
  sharded = eight['runs'][shape, tuning]
  for name, value in alone['metrics'].items():
    np.testing.assert_allclose(
      sharded['metrics'][name], value, rtol=1e-5, err_msg=name
    )
  assert alone['leaves'].keys() == sharded['leaves'].keys()
  for path, leaf in alone['leaves'].items():
    np.testing.assert_allclose(
      sharded['leaves'][path], leaf, atol=1e-5, err_msg=path
    )
  # The step was no small one, beside which any error would vanish.
  assert alone['smallest_update'] > 1e-3


@pytest.mark.parametrize('tuning', ['lora', 'full'])
def test_parameters_are_really_sharded(eight, tuning):
  for shape in ((2, 2, 2), (1, 4, 2)):
    _, fsdp, tensor = shape
    shards = eight['runs'][shape, tuning]['shards']
    assert shards[f'{QUERY}/kernel'] == (16 // fsdp, 24 // tensor)
    assert shards['params/token_embedder/embedding'] == (
      40 // tensor,
      16 // fsdp,
    )
    mlp = 'params/decoder/layers_0/mlp'
    assert shards[f'{mlp}/wi_0/kernel'] == (16 // fsdp, 36 // tensor)
    assert shards[f'{mlp}/wo/kernel'] == (36 // tensor, 16 // fsdp)
    bias = 'params/encoder/relpos_bias/rel_embedding'
    assert shards[bias] == (2 // tensor, 8)


def test_adapters_are_really_sharded(eight):
  shards = eight['runs'][(1, 4, 2), 'lora']['shards']
  query = QUERY.replace('params', 'lora')
  assert shards[f'{query}/lora/lora_a'] == (4, 4)
  assert shards[f'{query}/lora/lora_b'] == (4, 12)


def test_moments_lie_as_their_parameters(eight):
  moments = eight['runs'][(1, 4, 2), 'full']['moment_shards']
  assert ((16, 24), (4, 12)) in moments
  assert ((16, 24), (16, 24)) not in moments


def test_data_parallelism_replicates_parameters(eight):
  result = eight['runs'][(8, 1, 1), 'full']
  assert result['shards'][f'{QUERY}/kernel'] == (16, 24)
  assert result['batch_shard'] == (1, 9)


def test_sharding_saves_memory(eight):
  memory = {
    shape: eight['runs'][shape, 'full']['memory_bytes']
    for shape in ((1, 1, 1), *MESHES)
  }
  assert memory[1, 4, 2] < memory[8, 1, 1] < memory[1, 1, 1]


def test_activations_are_constrained(eight):
  shards = eight['activation_shards']
  assert tuple(shards[8, 1, 1]) == (1, 3, 2, 5)
  assert tuple(shards[2, 2, 2]) == (2, 3, 1, 5)
  assert tuple(shards[1, 4, 2]) == (2, 3, 1, 5)


def test_fingerprint_does_not_depend_on_the_mesh(eight):
  assert len({run['fingerprint'] for run in eight['runs'].values()}) == 1


def test_mesh_sizes(eight):
  assert eight['default_mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert eight['rest_of_mesh'] == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_errors_of_eight_devices(eight):
  messages = eight['errors']
  assert 'MESH_SHAPE (3, 1, 1)' in messages['product']
  assert 'number of devices, 8' in messages['product']
  assert 'number of devices, 8' in messages['no_rest']
  assert 'at most one of them -1' in messages['negative']
  assert 'into 8 parts' in messages['indivisible']
  assert "mesh axis 'tensor'" in messages['indivisible']
  assert 'decoder/' in messages['indivisible']
  assert 'BATCH_SIZE 6 is not divisible by 4 batch' in messages['batch']
  assert 'use a multiple of 8' in messages['parts']
  assert messages['good'] is None
  assert 'BATCH_SIZE 0' in messages['zero']


def test_data_goes_over_slices_and_the_other_axes_stay_in_one(eight):
  # The devices are of slice 0, 1, 0, 1, ...
  slices = np.vectorize(lambda number: number % 2)(eight['two_slices'])
  assert slices.shape == (2, 2, 2)
  assert (slices == [[[0]], [[1]]]).all()
  assert sorted(eight['two_slices'].flat) == [*range(8)]


def test_axes_that_would_cross_slices_are_refused(eight):
  message = eight['errors']['slices']
  assert 'MESH_SHAPE (1, 4, 2)' in message
  assert '2 slices of 4 devices: make data a multiple of 2' in message


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('2xv5e-16', (2, 16, 1)),
    ('2xv5e-16', (8, 2, 2)),
    ('4xv5e-4', (-1, 1, 1)),
    ('2xv4-32', (2, -1, 4)),
    ('2xtpu7x-8', (2, 8, 1)),
  ],
)
def test_slices_of_libtpu_are_laid_out_along_data(name, shape):
  topology = topologies.find(name)
  devices = topologies.devices(topology)
  mesh = partitioning.Partitioner(shape).make_mesh(devices).mesh
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  # One slice in a row of `data`, and each after the one before it.
  rows = slices.reshape(len(slices), -1)
  assert (rows == rows[:, :1]).all()
  each = len(rows) // topology.num_slices
  assert rows[:, 0].tolist() == sorted([*range(topology.num_slices)] * each)
  assert len(set(mesh.devices.flat)) == topology.num_devices


@pytest.mark.parametrize('shape', [(1, 32, 1), (3, -1, 1), (1, -1, 2)])
def test_slices_of_libtpu_are_not_joined_by_fsdp_or_tensor(shape):
  devices = topologies.devices(topologies.find('2xv5e-16'))
  with pytest.raises(errors.ConfigError, match='MESH_SHAPE'):
    partitioning.Partitioner(shape).make_mesh(devices)


@pytest.mark.parametrize(
  'shape', [(1, 1), (-1, -1, 1), (0, 1, 1), (1, -3, 1), (1, 1, 1, 1)]
)
def test_shapes_that_are_none(shape):
  with pytest.raises(errors.ConfigError, match='give three sizes'):
    partitioning.make_mesh(shape)


def test_too_many_devices_are_asked_for():
  with pytest.raises(errors.ConfigError, match='number of devices, 1'):
    partitioning.make_mesh((2, 1, 1))


def test_constraints_are_traced_only_under_a_mesh():
  model = t5.T5(tiny_models.CONFIG)
  tokens = jnp.ones((1, 3), jnp.int32)
  prompt = prompts.of_tokens(tokens)
  # Drawn here: shapes cannot be unboxed where a mesh is current.
  params = tiny_models.params()

  def trace():
    # A new function each time: jax would remember the other trace.
    def apply(params):
      return model.apply({'params': params}, prompt, tokens)

    return str(jax.make_jaxpr(apply)(params))

  with partitioning.use_mesh(partitioning.make_mesh()):
    assert trace().count('sharding_constraint') > 20
  assert 'sharding_constraint' not in trace()


def test_batches_go_to_the_devices_and_back():
  mesh = partitioning.make_mesh()
  batch = {'tokens': np.arange(12).reshape(4, 3)}
  sharded = placement.shard_batch(batch, mesh)
  assert sharded['tokens'].sharding.spec == jax.P(('data', 'fsdp'))
  np.testing.assert_array_equal(
    placement.to_host(sharded['tokens']), batch['tokens']
  )
