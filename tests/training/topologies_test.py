"""Names of TPU slices, and how libtpu is asked for them."""

import importlib.util
import math
import os

import jax
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import topologies


@pytest.mark.parametrize(
  ('name', 'compiler_name', 'num_devices'),
  [
    ('v2-8', 'v2:2x2', 8),
    ('v3-8', 'v3:2x2', 8),
    ('v4-8', 'v4:2x2x1', 4),
    ('v4-32', 'v4:2x2x4', 16),
    ('v4-4096', 'v4:8x16x16', 2048),
    ('v5e-1', 'v5e:1x1', 1),
    ('v5e-16', 'v5e:4x4', 16),
    ('v5e-256', 'v5e:16x16', 256),
    ('v5p-8', 'v5:2x2x1', 4),
    ('v5p-1024', 'v5:8x8x8', 512),
    ('v6e-8', 'v6e:2x4', 8),
    ('v6e-1', 'v6e:1x1', 1),
    ('tpu7x-2', 'tpu7x:1x1x1', 2),
    ('tpu7x-8', 'tpu7x:2x2x1', 8),
    ('2xv5e-16', 'v5e:4x4', 32),
    ('4xv4-32', 'v4:2x2x4', 64),
  ],
)
def test_usual_names_are_shapes_of_chips(name, compiler_name, num_devices):
  topology = topologies.find(name)
  assert topology.compiler_name == compiler_name
  assert topology.num_devices == num_devices


def test_memory_of_a_device():
  gib = 2**30
  assert topologies.find('v5e-16').memory_bytes == 15.75 * gib
  assert topologies.find('v4-32').memory_bytes == 30.75 * gib
  assert topologies.find('v5p-8').memory_bytes == int(95.74 * gib)


@pytest.mark.parametrize(
  ('alias', 'name'),
  [
    ('v5litepod-16', 'v5e-16'),
    ('V5P-8', 'v5p-8'),
    (' v7x-8 ', 'tpu7x-8'),
    ('v7-8', 'tpu7x-8'),
    ('1xv5e-16', 'v5e-16'),
    ('2Xv5litepod-16', '2xv5e-16'),
  ],
)
def test_aliases(alias, name):
  assert topologies.find(alias) == topologies.find(name)
  assert topologies.find(name).name == name


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5e-17', "No TPU topology 'v5e-17'. The slices of v5e are v5e-1, v5e-4"),
    ('v5e', 'The slices of v5e are'),
    ('v5d-16', 'Did you mean .*v5e-16'),
    ('h100', 'Generations are v2, v3, v4, v5e, v5p, v6e, tpu7x'),
    ('', 'Generations are'),
    ('2xv5e-17', "No TPU topology '2xv5e-17'. The slices of v5e are v5e-1"),
    ('0xv5e-16', 'give 1 or more slices, as in 2xv5e-16'),
    ('xv5e-16', 'Generations are'),
  ],
)
def test_unknown_names_are_refused_with_those_there_are(name, message):
  with pytest.raises(errors.ConfigError, match=message):
    topologies.find(name)


@pytest.mark.parametrize('name', ['v5e', 'v5e-16', 'v5litepod'])
def test_a_family_is_a_generation_by_size(name):
  family = topologies.family(name)
  assert [each.generation for each in family] == ['v5e'] * 8
  sizes = [each.num_devices for each in family]
  assert sizes == sorted(set(sizes))


def test_no_family_of_an_unknown_name():
  with pytest.raises(errors.ConfigError, match="No TPU topology 'v9'"):
    topologies.family('v9')


def test_a_family_of_several_slices_has_as_many_of_each():
  assert topologies.family('2xv5e')[:2] == (
    topologies.find('2xv5e-1'),
    topologies.find('2xv5e-4'),
  )


def test_the_number_in_a_name_counts_chips_or_cores():
  for name in topologies.names():
    topology = topologies.find(name)
    generation, number = name.split('-')
    counted = 1 if generation in ('v5e', 'v6e') else 2
    assert int(number) == counted * math.prod(topology.shape)
    assert topology.generation == generation


def test_libtpu_is_asked_for_the_chips_as_they_are_rented(monkeypatch):
  asked = []

  class Description:
    devices = jax.devices()

  def get_topology_desc(*arguments, **options):
    assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'
    # Kept as the user has it.
    assert os.environ['TPU_WORKER_ID'] == '3'
    asked.append((arguments, options))
    return Description()

  monkeypatch.setattr(
    topologies.topologies, 'get_topology_desc', get_topology_desc
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  for variable in topologies._ENVIRONMENT:
    # Set first, so that the old value comes back after the test.
    monkeypatch.setenv(variable, '')
    monkeypatch.delenv(variable)
  monkeypatch.setenv('TPU_WORKER_ID', '3')
  for name in ('v4-32', 'v4-128', 'v5e-1', 'v5p-8', '2xv5e-16'):
    assert topologies.devices(topologies.find(name)) == jax.devices()
  square = {'chips_per_host_bounds': (2, 2, 1)}
  megacore = {**square, 'chip_config_name': 'megacore'}
  assert asked == [
    (('v4:2x2x4', 'tpu'), megacore),
    (('v4:4x4x4', 'tpu'), {**megacore, 'wrap': (True, True, True)}),
    (('v5e:1x1', 'tpu'), {'chips_per_host_bounds': (1, 1, 1)}),
    (('v5:2x2x1', 'tpu'), square),
    (('v5e:4x4', 'tpu'), {**square, 'num_slices': 2}),
  ]


def test_without_libtpu_it_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match=r'pip install -e "\.\[plan\]"'):
    topologies.devices(topologies.find('v5e-16'))
