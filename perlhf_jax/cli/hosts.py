"""Starts and ends the processes of a command on several hosts together.

Each host runs the same command line with `commands.host_flags`. No process may
leave the others waiting: an error on one host before the work starts becomes an
error on all hosts, and a process that fails later ends the others too.
"""

from collections.abc import Callable, Mapping, Sequence
import sys
import traceback
from typing import Any

from perlhf_jax import logs
from perlhf_jax.cli import supervision
from perlhf_jax.core import errors
from perlhf_jax.core import sigterm
from perlhf_jax.core import versions


def supervised(work: Callable[[], int]) -> int:
  """Does the work of one of several processes, and ends it in bounded time.

  Args:
    work: returns an exit code.

  Returns:
    The exit code of `work`; `errors.GOES_ON` if another process was lost.
  """

  def ending_alone() -> int:
    wait = True
    try:
      code = work()
    except Exception as error:
      lost = _lost_host(error)
      if lost:
        print(f'perlhf: error: {lost}', file=sys.stderr)
        code, wait = errors.GOES_ON, False
      else:
        traceback.print_exc()
        code = 1
    supervision.if_aborted(code)
    if code and 'jax' in sys.modules:
      from perlhf_jax.training import multihost

      multihost.leave(code, wait=wait)
    return code

  return supervision.run(ending_alone)


def load_together(
  flags: Mapping[str, Any],
  command: Sequence[str],
  load: Callable[[], tuple[Callable[[], Any], str]],
) -> Callable[[], Any]:
  """Connects to the other processes and loads the same command as they do.

  Args:
    flags: values of `commands.host_flags`.
    command: lines that describe the command, to compare processes.
    load: returns the call that does the work, and its configuration as text.

  Returns:
    The call.

  Raises:
    UserError: `load` raised it on any process; or processes are missing, or
      differ in command, configuration or versions.
  """
  # jax takes a second to import, and must not use a device before `initialize`.
  import jax

  from perlhf_jax.training import multihost

  # If hosts are started one by one, the same command may succeed later.
  supervision.if_aborted(errors.GOES_ON, multihost.unmet(**flags))
  multihost.initialize(**flags)
  supervision.if_aborted(errors.GOES_ON, multihost.LOST)
  logs.show_process(jax.process_index())
  call = error = None
  configuration = ''
  try:
    call, configuration = load()
  except errors.UserError as e:
    error = e
  with sigterm.kept():  # The first use of a device.
    multihost.raise_together(error)
  installed = versions.describe().items()
  multihost.check_same(
    '\n'.join([*command, *map(': '.join, installed), configuration]),
    'the command, its configuration or their versions',
  )
  return call


def _lost_host(error: Exception) -> str | None:
  """Returns a message if an error means that another process is lost."""
  if 'jax' not in sys.modules:
    return None
  from perlhf_jax.training import multihost

  return multihost.lost_host(error)
