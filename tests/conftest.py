"""Set-up of every test: the CPU, quiet libraries, checked shapes and types."""

import contextlib
import gc
import os
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Nothing of a test is kept in the user's folder for the next start.
os.environ['PERLHF_START_CACHE'] = 'off'
# The suite compiles hundreds of tiny programs and runs each a few times.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
)
# All processes of all runs of the suite share what they have compiled.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  import kept_programs

  os.environ['JAX_COMPILATION_CACHE_DIR'] = kept_programs.folder()
  # Nearly all programs are small.
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import hypothesis
import longest_files
import pytest
import typechecking

# Before anything of ours is imported, or it would be imported unchecked.
typechecking.install()
# JAX cleans up whenever Python looks for garbage, by default after every 700
# new objects: a sixteenth of the time of tests that train.
gc.set_threshold(50_000, 20, 20)

# The first call of a jitted function compiles, which is slow and no fault.
# Derandomised, so that a green commit stays green.
hypothesis.settings.register_profile(
  'perlhf',
  deadline=None,
  derandomize=True,
  max_examples=50,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('perlhf')


def pytest_collection_modifyitems(items):
  items.sort(key=longest_files.rank)


@pytest.fixture(scope='module', autouse=True)
def own_tasks_are_forgotten():
  """Removes the tasks that the tests of a file registered.

  A process runs many files, and some of them list all tasks.
  """
  if 'seqio' not in sys.modules:
    yield
    return
  import seqio

  from perlhf_jax.data import task_modules

  task_modules.import_tasks()
  registries = seqio.MixtureRegistry, seqio.TaskRegistry
  before = [set(each.names()) for each in registries]
  yield
  for registry, names in zip(registries, before, strict=True):
    for name in set(registry.names()) - names:
      registry.remove(name)


@pytest.fixture(scope='module', autouse=True)
def programs_are_kept():
  """Takes back what commands that compile for other chips tell their process.

  Processes that later tests start would compile everything themselves.
  """
  yield
  os.environ.pop('JAX_ENABLE_COMPILATION_CACHE', None)


@pytest.fixture(scope='session')
def preloaded():
  """Starts commands in processes that need not import everything again."""
  import starting

  programs = os.environ['JAX_COMPILATION_CACHE_DIR']
  with contextlib.closing(starting.Preloaded(programs)) as preloaded:
    yield preloaded
