import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.training import compiled_step
from perlhf_jax.training import memory
from perlhf_jax.training import partitioning


@pytest.fixture
def traced():
  return []


@pytest.fixture
def step(traced):
  def function(state, batch):
    traced.append(batch['x'].shape)
    return state + jnp.sum(batch['x'])

  return compiled_step.CompiledStep(
    function, partitioning.make_mesh(), name='the sum', donate_argnums=(0,)
  )


def test_compiles_once_a_shape(step, traced, caplog):
  caplog.set_level(logging.INFO)
  flags, total = [], jnp.zeros(())
  for rows in (2, 2, 3, 2, 3):
    total = step(total, {'x': jnp.ones(rows)})
    flags.append(step.newly_compiled)
  assert flags == [True, False, True, False, False]
  assert traced == [(2,), (3,)]
  assert total == 12
  assert caplog.text.count('Compiled the sum in') == 2


def test_the_log_names_the_shape_and_the_memory_of_each_program(step, caplog):
  caplog.set_level(logging.INFO)
  for length in (3000, 10):
    batch = {'a_tokens': jnp.ones((2, length)), 'x': jnp.ones(2)}
    step(jnp.zeros(()), batch)
  large, small = (record.getMessage() for record in caplog.records)
  assert large.endswith(' MiB per device, for a_tokens 2x3000.')
  assert small.endswith(' MiB per device, for a_tokens 2x10.')


def test_memory_is_that_of_the_largest_program(step):
  step(jnp.zeros(()), {'x': jnp.ones(1000)})
  large = step.memory_bytes
  assert large >= 4000
  step(jnp.zeros(()), {'x': jnp.ones(10)})
  assert step.memory_bytes == large


def test_what_is_donated_counts_once():
  def function(state, batch):
    return state * batch['x'][0]

  state, batch = jnp.ones(10_000), {'x': jnp.ones(1)}
  memory = []
  for donate in ((), (0,)):
    step = compiled_step.CompiledStep(
      function,
      partitioning.make_mesh(),
      name='a product',
      donate_argnums=donate,
    )
    step(state + 0, batch)
    memory.append(step.memory_bytes)
  assert memory[0] - memory[1] == 40_000


def test_out_shardings():
  mesh = partitioning.make_mesh()
  step = compiled_step.CompiledStep(
    lambda batch: batch['x'] * 2,
    mesh,
    name='twice',
    out_shardings=partitioning.batch_sharding(mesh),
  )
  y = step({'x': np.ones((4, 2))})
  assert y.sharding.spec == jax.P(('data', 'fsdp'))


def test_a_program_that_does_not_fit_is_not_run(step, monkeypatch):
  monkeypatch.setattr(memory, 'device_free_bytes', lambda: 3)
  with pytest.raises(memory.NotEnoughMemoryError, match='the sum needs 0 MiB'):
    step(jnp.zeros(()), {'x': jnp.ones((64, 64))})
