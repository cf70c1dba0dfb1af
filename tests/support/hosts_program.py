"""One of several processes; started by the tests that need them.

`python hosts_program.py COMMAND [--number=N] --folder=F ...` is as `perlhf
COMMAND`, with commands that take no time.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Annotated

from absl import logging

from perlhf_jax import logs
from perlhf_jax.cli import commands
from perlhf_jax.cli import hosts
from perlhf_jax.cli import main
from perlhf_jax.core import checks
from perlhf_jax.core import errors

COMMANDS = {
  name: commands.Command(
    help=name,
    function=f'hosts_program.{name}',
    example='',
    on_hosts=True,
  )
  for name in ('agree', 'preempt', 'lose', 'misuse', 'wait')
}
STEPS = 12


class Pair:
  """Two of these processes.

  Attributes:
    processes: both.
  """

  def __init__(self, *args, differing=((), ())):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self.processes = [
      start(
        *args,
        *differing[index],
        f'--coordinator_address=127.0.0.1:{port}',
        '--num_processes=2',
        f'--process_id={index}',
        '--connect_timeout=60',
      )
      for index in range(2)
    ]

  def end(self, timeout=120):
    """Returns the exit code and stderr of both."""
    try:
      errs = [p.communicate(timeout=timeout)[1] for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    return [p.returncode for p in self.processes], errs


def start(*args):
  """Starts one process."""
  program = pathlib.Path(__file__).resolve()
  support, root = program.parent, program.parents[2]
  return subprocess.Popen(
    [sys.executable, str(program), *args],
    env={**os.environ, 'PYTHONPATH': f'{support}:{root}'},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def agree(*, folder: str, number: Annotated[int, checks.NotNegative] = 1):
  """Comes to every kind of agreement; writes what is raised, by name."""
  del number
  import jax

  from perlhf_jax.training import multihost
  from perlhf_jax.training import step_files

  index = jax.process_index()
  step_files._SHARING_SECONDS = 1
  raised = {}

  @contextlib.contextmanager
  def recording(name):
    raised[name] = None
    try:
      yield
    except errors.UserError as error:
      raised[name] = [type(error).__name__, str(error), error.on_every_host]

  with recording('no error'):
    multihost.raise_together(None)
  with recording('error of 1'):
    multihost.raise_together(errors.DataError('line 3') if index else None)
  with recording('error of both'):
    multihost.raise_together(errors.DataError(f'line {index}'))
  with recording('same'):
    multihost.check_same('rank = 8\nalpha = 8', 'the text')
  with recording('different'):
    multihost.check_same(
      f'a = 1\nrank = {8 + index}\nalpha = é', 'the configuration'
    )
  with recording('shared'):
    step_files.prepare_model_dir(f'{folder}/shared')
  with recording('not shared'):
    step_files.prepare_model_dir(f'{folder}/{index}')
  with recording('not writable'):
    step_files.prepare_model_dir(f'{__file__}/run')
  # Python's handler, which ends the command; None were one of a library.
  raised['sigterm'] = callable(signal.getsignal(signal.SIGTERM))
  (pathlib.Path(folder) / f'raised_{index}.json').write_text(json.dumps(raised))
  logging.info('an info line')
  logging.warning('a warning')
  print('a line', file=sys.stderr)


def preempt(*, folder: str, number: Annotated[int, checks.NotNegative] = 1):
  """Trains once as a whole, once in parts; ends with a part.

  Process `number` is told to stop, after step 5 and after step 8.
  """
  folder = pathlib.Path(folder)
  _train(folder / 'whole')
  for step in 5, 8:
    with contextlib.suppress(errors.PreemptedError):
      _train(folder / 'parts', number, step, signal.SIGTERM)
  _train(folder / 'parts')
  _train(folder / 'end', number, 3, signal.SIGTERM)


def lose(*, folder: str, number: Annotated[int, checks.NotNegative] = 1):
  """Trains until `number` is gone: 0 or 1 is killed, 2 (process 1) halts.

  3 is nobody.
  """
  halts = number == 2
  _train(
    pathlib.Path(folder) / 'run',
    1 if halts else number,
    5,
    signal.SIGSTOP if halts else signal.SIGKILL,
  )


def misuse(*, folder: str, number: Annotated[int, checks.NotNegative] = 1):
  """Process 1 alone makes the mistake `number` in the middle of training."""
  from perlhf_jax.training import multihost

  multihost._GRACE_SECONDS = 1
  mistakes = {1: errors.DataError('a bad row'), 2: ValueError('our fault')}
  _train(pathlib.Path(folder) / 'run', 1, 5, mistakes[number])


def wait(*, folder: str, number: Annotated[int, checks.NotNegative] = 1):
  """Does nothing for a while."""
  pathlib.Path(folder, 'waiting').touch()
  time.sleep(number)


def _train(folder, process=None, at_step=None, event=None):
  """Trains a linear regression, on two rows a process.

  Args:
    folder: MODEL_DIR.
    process: to which something happens.
    at_step: the step before which it does.
    event: a signal or an exception.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from perlhf_jax.training import checkpoint_manager
  from perlhf_jax.training import compiled_step
  from perlhf_jax.training import optimizers
  from perlhf_jax.training import partitioning
  from perlhf_jax.training import step_files
  from perlhf_jax.training import train_loop
  from perlhf_jax.training import train_state
  from perlhf_jax.training import train_step

  _without_tensorboard()
  optimizer = optimizers.make_optimizer(
    optimizers.Optimizer(name='adamw', learning_rate=0.1), 10
  )

  def loss(trainable, frozen, batch, rng):
    noise = 0.01 * jax.random.normal(rng, ())
    error = batch['x'] @ trainable['w'] + noise - batch['y']
    return train_step.LossOutput(jnp.sum(error**2), jnp.float32(error.size), {})

  mesh = partitioning.make_mesh()
  whole = partitioning.replicated(mesh)
  step = compiled_step.CompiledStep(
    train_step.make_train_step(
      train_step.gradients_of(loss),
      optimizer,
      lambda step: 0.1 + 0 * step,
      seed=0,
    ),
    mesh,
    name='a step',
    donate_argnums=(0,),
  )

  def batches(first):
    for index in range(first, STEPS):
      if index + 1 == at_step and jax.process_index() == process:
        if isinstance(event, Exception):
          raise event
        print(f'pid {os.getpid()}', file=sys.stderr, flush=True)
        os.kill(os.getpid(), event)
        time.sleep(0.1)
      x = np.random.default_rng(index).normal(size=(4, 3)).astype(np.float32)
      rows = slice(2 * jax.process_index(), 2 * jax.process_index() + 2)
      yield {'x': x[rows], 'y': (x @ np.float32([1, 2, 3]))[rows]}

  state = jax.jit(
    lambda: train_state.create({'w': jnp.zeros(3)}, optimizer),
    out_shardings=whole,
  )()
  directory = step_files.prepare_model_dir(str(folder))
  manager = checkpoint_manager.CheckpointManager(directory, {'kind': 'test'})
  latest = manager.latest_step()
  if latest is not None:
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    state = manager.restore(latest, abstract)
  state = train_loop.train(
    train_loop.LoopConfig(
      train_steps=STEPS, log_period=1, eval_period=4, checkpoint_period=4
    ),
    model_dir=directory,
    manager=manager,
    step=step,
    state=state,
    frozen={},
    batches=batches,
    batch_size=4,
    evaluate=lambda state: {'size': float(jnp.sum(state.trainable['w']))},
    selection=train_loop.Selection('size'),
    mesh=mesh,
    summary={},
  )
  if jax.process_index() == 0:
    np.save(folder / 'w.npy', np.asarray(state.trainable['w']))


def _without_tensorboard():
  """Stands in for clu, which takes seconds to import TensorFlow."""
  writer = types.SimpleNamespace(
    write_scalars=lambda *_: None, flush=lambda: None, close=lambda: None
  )
  sys.modules['clu'] = types.SimpleNamespace(
    metric_writers=types.SimpleNamespace(SummaryWriter=lambda _: writer)
  )


if __name__ == '__main__':
  logs.show()
  sys.exit(hosts.supervised(lambda: main.run(sys.argv[1:], COMMANDS)))
