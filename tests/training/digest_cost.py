"""What digests cost when a checkpoint of 1 GiB is saved and loaded.

python tests/training/digest_cost.py [--mebibytes=1024] [--repeats=9]

Prints medians of repeats that take turns, and the median of the differences
between neighbours over the median without digests.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from etils import epath
import jax
import numpy as np

from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import fingerprint
from perlhf_jax.training import step_digests
from perlhf_jax.training import step_files
from perlhf_jax.training import train_state

_LEAVES = 24
_write = step_digests.write


def _state(mebibytes):
  """A model of random weights, and Adam's two moments of it."""
  rng = np.random.default_rng(0)
  rows = mebibytes * 2**20 // (4 * 3 * _LEAVES * 1024)

  def tree():
    return {
      f'layer_{i}': jax.device_put(rng.normal(size=(rows, 1024)).astype('f4'))
      for i in range(_LEAVES)
    }

  trainable = {'params': tree()}
  moments = {'mu': tree(), 'nu': tree()}
  return train_state.TrainState(np.int32(1), trainable, moments)


def _save(folder, state, digests):
  step_digests.write = _write if digests else lambda *_: None
  shutil.rmtree(folder, ignore_errors=True)
  start = time.perf_counter()
  manager = checkpoint_manager.CheckpointManager(folder, {})
  manager.save(state, 0.0)
  manager.close()
  return time.perf_counter() - start


def _resume(folder, state, digests):
  os.environ['PERLHF_VERIFY'] = '' if digests else 'off'
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
    ),
    state,
  )
  start = time.perf_counter()
  step = step_files.newest_intact_step(folder)
  manager = checkpoint_manager.CheckpointManager(folder, {})
  jax.block_until_ready(manager.restore(int(step.name), abstract))
  seconds = time.perf_counter() - start
  manager.close()
  return seconds


def _load(folder, state, digests):
  """As `loading.load`: the weights alone, and their fingerprint."""
  os.environ['PERLHF_VERIFY'] = '' if digests else 'off'
  places = jax.tree.map(lambda x: x.sharding, state.trainable['params'])
  start = time.perf_counter()
  step = step_files.intact_step(str(folder))
  tree = step_files.read_trainable(step, params_shardings=places)
  fingerprint.fingerprint(tree['params'])
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--mebibytes', type=int, default=1024)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--folder', default=None)
  args = parser.parse_args()
  state = _state(args.mebibytes)
  with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
    folder = epath.Path(temporary) / 'run'
    for name, measure in (
      ('save', _save),
      ('resume', _resume),
      ('load the weights', _load),
    ):
      _save(folder, state, True)
      seconds = {True: [], False: []}
      for repeat in range(args.repeats + 1):
        # Each is the first of a pair as often as the second.
        for digests in (True, False) if repeat % 2 else (False, True):
          taken = measure(folder, state, digests)
          if repeat:  # The first pair warms up.
            seconds[digests].append(taken)
      with_, without = seconds[True], seconds[False]
      more = statistics.median(
        a - b for a, b in zip(with_, without, strict=True)
      )
      base = statistics.median(without)
      print(
        f'{name}: {statistics.median(with_):.3f} s with digests, {base:.3f} s '
        f'without; {100 * more / base:+.1f}%',
        flush=True,
      )


if __name__ == '__main__':
  main()
