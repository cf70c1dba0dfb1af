"""Starts commands as children of one process that has imported everything.

Importing JAX and TensorFlow takes longer than a short command. This process has
used no device when it makes a child, which is then as good as a fresh one: the
child reads XLA_FLAGS when it first uses a device. `starting.Preloaded` asks for
children over a socket.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import time
import traceback

_POLL_SECONDS = 0.02


def _import_all() -> None:
  from perlhf_jax import logs

  logs.silence_native_libraries()
  with logs.without_noise():
    from perlhf_jax import stages
    from perlhf_jax.cli import main  # noqa: F401
    from perlhf_jax.data import task_modules

    for module in pkgutil.iter_modules(stages.__path__):
      importlib.import_module(f'perlhf_jax.stages.{module.name}')
    import clu.metric_writers  # noqa: F401

    task_modules.import_tasks()
    from tasks import demo
    from tasks import demo_vqa

  # Runs read at most 48 rows, and a task makes all it has.
  demo.SPLIT_SIZES['train'] = 100
  demo_vqa.SPLIT_SIZES.update(train=100, validation=48, test=48)


def _jump(jumps) -> None:
  """Patches the clock; a jump is (seconds from now, seconds to add)."""
  real, begin = time.time, time.monotonic()

  def now():
    passed = time.monotonic() - begin
    return real() + sum(by for after, by in jumps if passed >= after)

  time.time = now


def _run(asked, out, err):
  """Is the command; in the child."""
  os.setsid()
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for descriptor, place in ((out, 1), (err, 2)):
    os.dup2(descriptor, place)
    os.close(descriptor)
  os.environ.update(asked['environment'])
  os.chdir(asked['folder'])
  if asked['jumps']:
    _jump(asked['jumps'])
  program, arguments = asked['program'], asked['arguments']
  sys.argv = [program, *arguments]
  if program != 'perlhf':
    sys.path[0] = os.path.dirname(program)
    runpy.run_path(program, run_name='__main__')
    return
  from perlhf_jax.cli import main

  main.cli()


def _serve(asking: socket.socket) -> None:
  """Makes children, and reports their ends; returns in the children."""
  children = set()
  while True:
    wait = _POLL_SECONDS if children else None
    if select.select([asking], [], [], wait)[0]:
      data, descriptors, *_ = socket.recv_fds(asking, 1 << 18, 2)
      if not data:  # Who has asked is gone.
        for child in children:
          with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os._exit(0)
      child = os.fork()
      if not child:
        asking.close()
        gc.enable()
        _run(json.loads(data), *descriptors)
        return
      for each in descriptors:
        os.close(each)
      children.add(child)
      _report(asking, started=child)
    for child in list(children):
      ended, status = os.waitpid(child, os.WNOHANG)
      if ended:
        children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        _report(asking, ended=child, code=code)


def _report(asking, **said):
  asking.send(json.dumps(said).encode())


def main() -> None:
  """Imports everything, and serves."""
  asking = socket.socket(fileno=int(sys.argv[1]))
  try:
    _import_all()
  except BaseException:
    _report(asking, failed=traceback.format_exc())
    raise
  # As in conftest.py: JAX cleans up whenever Python looks for garbage.
  gc.set_threshold(50_000, 20, 20)
  # What is never freed stays shared between the children.
  gc.collect()
  gc.disable()
  gc.freeze()
  _report(asking, ready=True)
  _serve(asking)


if __name__ == '__main__':
  main()
