"""A copy of the checkout, and forks of this process that test what lies there.

Imports of JAX and of what else the tests need take longer than most tests. This
process imports them once, and nothing of ours that is mutated.
"""

from collections.abc import Iterator, Sequence
import contextlib
import gc
import importlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Neither SeqIO nor TensorFlow: where SeqIO is imported, conftest.py registers
# all tasks.
_PRELOADED = (
  'beartype flax.linen flax.struct hypothesis.extra.numpy optax'
  ' orbax.checkpoint gin pytest scipy.stats xdist'
).split()
_FLAGS = (
  '-x -q -n 0 -p no:cacheprovider --tb=line --hypothesis-profile=mutants'
).split()
_LOOK_SECONDS = 0.05
# No file needs a quarter of it; a loop that a mutant never leaves does.
_CPU_SECONDS = 300
# Of a fork that waits for ever. Those are not counted in which this process was
# halted.
_SECONDS = 1200
_SHOWN = 3000


@contextlib.contextmanager
def copy_of_checkout() -> Iterator[pathlib.Path]:
  """Copies the checkout, and makes this process import from the copy."""
  listed = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
  files = subprocess.check_output(listed, cwd=ROOT, text=True).split('\0')
  with tempfile.TemporaryDirectory(prefix='perlhf_mutants_') as folder:
    copy = pathlib.Path(folder, 'checkout')
    for name in filter(None, files):
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, copy / name)
    os.chdir(copy)
    sys.path = [path for path in sys.path if not _is_in_checkout(path)]
    tests = copy / 'tests'
    sys.path[:0] = [str(copy), str(tests), str(tests / 'support')]
    os.environ['PYTHONPATH'] = str(copy)
    # Tests of a mutant find what those of the original have compiled. Programs
    # have the names of their digests, so that a mutant's is another one.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/programs')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
    _preload()
    # Forks and the copy do not outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    yield copy


def _is_in_checkout(path: str) -> bool:
  resolved = pathlib.Path(path).resolve()
  return ROOT in (resolved, resolved.parent, resolved.parent.parent)


def _preload() -> None:
  for name in 'conftest', *_PRELOADED:
    importlib.import_module(name)
  import hypothesis

  # A counterexample is enough: nobody reads the shortest one.
  hypothesis.settings.register_profile(
    'mutants',
    hypothesis.settings.get_profile('perlhf'),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
  )
  # Forks look for garbage among their own objects only.
  gc.collect()
  gc.freeze()


def run_tests(arguments: Sequence[str]) -> tuple[int, str]:
  """Runs tests in a fork until one of them fails.

  Args:
    arguments: pytest's.

  Returns:
    pytest's exit code, or minus a signal's number, and the end of its output.
  """
  with tempfile.TemporaryFile('w+', errors='replace') as output:
    child = os.fork()
    if not child:
      _become_pytest(arguments, output.fileno())
    waited = 0.0
    pid, status = 0, 0
    try:
      while not pid and waited < _SECONDS:
        time.sleep(_LOOK_SECONDS)
        waited += _LOOK_SECONDS
        pid, status = os.waitpid(child, os.WNOHANG)
    finally:
      # Whatever the tests have started ends, too.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not pid:
      _, status = os.waitpid(child, 0)
    output.seek(0)
    text = output.read()[-_SHOWN:]
  return os.waitstatus_to_exitcode(status), text


def _become_pytest(arguments: Sequence[str], output: int) -> None:
  code = 70
  try:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    import pytest

    code = int(pytest.main([*_FLAGS, *arguments]))
    sys.stdout.flush()
  finally:
    os._exit(code)
