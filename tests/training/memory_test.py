"""What is free, and programs that are refused."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import host_memory
from perlhf_jax.training import memory


def _with_devices(monkeypatch, platform, *stats):
  devices = [
    types.SimpleNamespace(platform=platform, memory_stats=lambda s=s: s)
    for s in stats
  ]
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)


def test_the_devices_of_a_cpu_share_it(monkeypatch):
  monkeypatch.setattr(host_memory, 'free_bytes', lambda: 1000)
  _with_devices(monkeypatch, 'cpu', None, None, None, None)
  assert memory.device_free_bytes() == 250


def test_the_fullest_device_counts(monkeypatch):
  some = {'bytes_limit': 1000, 'bytes_in_use': 100}
  most = {'bytes_limit': 1000, 'bytes_in_use': 700}
  _with_devices(monkeypatch, 'gpu', some, most)
  assert memory.device_free_bytes() == 300
  _with_devices(monkeypatch, 'gpu', None)
  assert memory.device_free_bytes() is None


def _compile():
  x = jax.ShapeDtypeStruct((1000, 10), np.float32)
  return jax.jit(lambda x: jnp.sin(x @ x.T)).lower(x).compile()


def test_a_program_needs_its_results_and_temporaries():
  assert memory.added_bytes(_compile()) == pytest.approx(4e6, rel=1.1)


def test_the_temporaries_of_a_tpu_do_not_all_live_at_once(monkeypatch):
  _with_devices(monkeypatch, 'tpu', None)
  analysis = types.SimpleNamespace(
    peak_memory_in_bytes=50, argument_size_in_bytes=20, temp_size_in_bytes=90
  )
  program = mock.create_autospec(jax.stages.Compiled, instance=True)
  program.memory_analysis.return_value = analysis
  assert memory.added_bytes(program) == 30


def test_a_program_that_does_not_fit_is_refused(monkeypatch):
  program = _compile()
  needed = memory.added_bytes(program)
  for free in (None, needed):
    monkeypatch.setattr(memory, 'device_free_bytes', lambda free=free: free)
    memory.check_program(program, 'it')
  monkeypatch.setattr(memory, 'device_free_bytes', lambda: needed - 1)
  with pytest.raises(errors.ConfigError, match='it needs 4 MiB of') as caught:
    memory.check_program(program, 'it')
  error = caught.value
  assert (error.needed_bytes, error.free_bytes) == (needed, needed - 1)
