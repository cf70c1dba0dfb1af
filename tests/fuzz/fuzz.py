"""Fuzzes the parsers of foreign files, each for some time or executions.

  export PYTHONPATH=.:tests/support:tests/fuzz
  python tests/fuzz/fuzz.py --seconds=600
  python tests/fuzz/fuzz.py metadata vqa --seed=7

Atheris, which is guided by coverage, is used where it is installed (pip install
atheris); Hypothesis, which is in the extra `test`, where it is not. What is no
clean error is written to fuzz-<target>-<digest> and ends the program.
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

try:
  import atheris
except ImportError:
  atheris = None

with (
  contextlib.nullcontext()
  if atheris is None
  else atheris.instrument_imports(include=['perlhf_jax', 'tasks'])
):
  import targets

import hypothesis
from hypothesis import strategies as st
import mutations

# Executions of Hypothesis between two looks at the clock.
_BATCH = 1000
# Of one file, in seconds.
_LONGEST = 60
_MAX_BYTES = 2**16


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('targets', nargs='*')
  parser.add_argument('--seconds', type=int, default=60, help='of each target')
  parser.add_argument(
    '--executions', type=int, default=1_000_000, help='of each target, at most'
  )
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  signal.signal(signal.SIGALRM, _hangs)
  fuzz = _with_hypothesis if atheris is None else _with_atheris
  for name in options.targets or targets.targets():
    fuzz(name, options.seconds, options.executions, options.seed)


def _with_hypothesis(
  name: str, seconds: int, executions: int, seed: int
) -> None:
  target = targets.targets()[name]
  rng, start = random.Random(f'{seed}/{name}'), time.monotonic()
  count = refused = 0

  def parse(seed):
    nonlocal count, refused
    inner = random.Random(seed)
    data = mutations.mutate(inner.choice(target.seeds), inner)
    count, refused = count + 1, refused + _run(name, target, data)

  while time.monotonic() < start + seconds and count < executions:
    test = hypothesis.given(seed=st.integers(0, 2**64))(parse)
    settings = hypothesis.settings(
      max_examples=_BATCH,
      database=None,
      deadline=None,
      suppress_health_check=list(hypothesis.HealthCheck),
      phases=(hypothesis.Phase.generate,),
    )
    hypothesis.seed(rng.getrandbits(64))(settings(test))()
  spent = time.monotonic() - start
  print(
    f'{name}: {count:,} executions in {spent:.0f} s, {refused:,} refused',
    flush=True,
  )


def _with_atheris(name: str, seconds: int, executions: int, seed: int) -> None:
  """Does so in a process of its own, for Atheris ends the one it is in."""
  target = targets.targets()[name]
  child = os.fork()
  if child:
    _, status = os.waitpid(child, 0)
    if status:
      sys.exit(f'{name}: see above')
    print(f'{name}: nothing but clean errors', flush=True)
    return

  def mutate(data, size, seed):
    inner = random.Random(seed)
    if inner.random() < 0.2:
      return atheris.Mutate(data, size)
    return mutations.mutate(data, inner)[:size]

  corpus = pathlib.Path(tempfile.mkdtemp(prefix=f'perlhf_corpus_{name}'))
  for index, data in enumerate(target.seeds):
    (corpus / str(index)).write_bytes(data)
  atheris.Setup(
    [
      sys.argv[0],
      str(corpus),
      f'-max_total_time={seconds}',
      f'-runs={executions}',
      f'-max_len={_MAX_BYTES}',
      f'-seed={seed + 1}',
      '-print_final_stats=1',
      '-verbosity=0',
    ],
    lambda data: _run(name, target, data) and None,
    custom_mutator=mutate,
  )
  atheris.Fuzz()


def _run(name, target, data) -> bool:
  signal.alarm(_LONGEST)
  try:
    return targets.run(target, data)
  except BaseException:
    digest = hashlib.sha256(data).hexdigest()[:12]
    pathlib.Path(f'fuzz-{name}-{digest}').write_bytes(data)
    print(f'{name}: see fuzz-{name}-{digest}', file=sys.stderr, flush=True)
    raise
  finally:
    signal.alarm(0)


def _hangs(*_) -> None:
  raise TimeoutError('the parser hangs')


if __name__ == '__main__':
  main()
