"""Several processes that run one command, one process per host.

The processes connect in `initialize`, and `check_same` makes sure that all have
the same configuration. `raise_together` raises a user error on every process,
because the others would wait for a process that stops alone. `lost_host`
recognises errors that are caused by a lost process, and `leave` ends this
process without waiting for lost ones.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import contextlib
import difflib
import hashlib
import os
import re
import socket
import sys
import threading
from typing import Annotated, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from perlhf_jax.core import checks
from perlhf_jax.core import errors

LOST = (
  'another process of this run was lost; its own output may say why. Started '
  'again, the same command goes on from the newest checkpoint'
)

_LINES_SHOWN = 6
_GRACE_SECONDS = 5.0

# Status codes and words with which runtimes report a lost peer.
_LOST = re.compile(
  r'\bGloo\b|\bUNAVAILABLE\b|\bDEADLINE_EXCEEDED\b|heartbeat'
  r'|\bNCCL\b.*(remote process|network error|timed out|aborted)',
  re.DOTALL,
)


def initialize(
  *,
  multihost: bool = False,
  coordinator_address: str | None = None,
  num_processes: Annotated[int, checks.AtLeastOne] | None = None,
  process_id: Annotated[int, checks.NotNegative] | None = None,
  connect_timeout: Annotated[int, checks.AtLeastOne] = 300,
  heartbeat_timeout: Annotated[int, checks.AtLeastOne] = 100,
) -> None:
  """Connects to the other processes; call it before any use of a device.

  jax ends the process by abort(), which Python cannot catch, if the others do
  not connect within `connect_timeout`, or if one of them is lost later.

  Args:
    multihost: find the other hosts from the environment: Cloud TPU, GKE, SLURM.
    coordinator_address: address HOST:PORT of process 0, with any free port,
      instead of multihost.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    connect_timeout: seconds to wait for the other processes to start.
    heartbeat_timeout: seconds after which a silent process counts as lost.

  Raises:
    ConfigError: the arguments contradict each other, the environment has no
      cluster, or the address cannot be used.
  """
  explicit = {
    'coordinator_address': coordinator_address,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  _check_arguments(multihost, explicit)
  if process_id == 0:
    _check_port(coordinator_address)
  # jax's SIGTERM handler would replace ours (see `preemption`), and keep a
  # process alive that is not in the training loop.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **explicit,
      cluster_detection_method=None if multihost else 'deactivate',
      initialization_timeout=connect_timeout,
      heartbeat_timeout_seconds=heartbeat_timeout,
    )
  except Exception as error:
    if 'must be called before' in str(error):
      raise  # A bug of this package.
    raise errors.ConfigError(_explain(multihost, explicit, error)) from error


def _check_arguments(multihost: bool, explicit: dict) -> None:
  """Raises a ConfigError if the arguments contradict each other."""
  given = [f'--{name}' for name, value in explicit.items() if value is not None]
  missing = [f'--{name}' for name, value in explicit.items() if value is None]
  if multihost:
    if given:
      raise errors.ConfigError(
        f'--multihost finds the other hosts from the environment, and '
        f'{", ".join(given)} names them: give the one or the other.'
      )
    return
  if missing:
    raise errors.ConfigError(
      f'{", ".join(given) or "a run on several hosts"} needs '
      f'{", ".join(missing)} as well; on Cloud TPU, GKE or SLURM give '
      '--multihost alone.'
    )
  address = explicit['coordinator_address']
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise errors.ConfigError(
      f'--coordinator_address={address} is not HOST:PORT, such as '
      '10.0.0.2:8476: the host of process 0 and any free port of it.'
    )
  count, index = explicit['num_processes'], explicit['process_id']
  if not 0 <= index < count:
    raise errors.ConfigError(
      f'--process_id={index} does not fit --num_processes={count}: processes '
      f'are numbered from 0 to {count - 1}.'
    )


def _check_port(coordinator_address: str) -> None:
  """Raises a ConfigError if this process cannot listen at its own address.

  Otherwise jax could segfault, or share the port of another run.
  """
  if 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
    return
  port = int(coordinator_address.rpartition(':')[2])
  try:
    with socket.socket() as server:
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      server.bind(('', port))
  except OSError as error:
    raise errors.ConfigError(
      f'process 0 cannot listen at --coordinator_address={coordinator_address}:'
      f' {error.strerror}. Give another port, the same to all processes, and '
      'see that no other run or process 0 is left on this host.'
    ) from error


def _explain(multihost: bool, explicit: dict, error: Exception) -> str:
  """Says why the processes could not meet."""
  if not multihost:
    return (
      f'process {explicit["process_id"]} cannot use --coordinator_address='
      f'{explicit["coordinator_address"]}: {_first_line(error)}. Give an '
      'address of the host of process 0, the same to all processes.'
    )
  if isinstance(error, ValueError) and 'should be defined' in str(error):
    return (
      '--multihost found no cluster in the environment (Cloud TPU, GKE, '
      'SLURM, Open MPI). On other machines give every process '
      '--coordinator_address=HOST:PORT --num_processes=N --process_id=I; for '
      'a single process leave --multihost out.'
    )
  return (
    'the cluster that --multihost found cannot be used: '
    f'{type(error).__name__}: {_first_line(error)}. Or give every process '
    '--coordinator_address=HOST:PORT --num_processes=N --process_id=I.'
  )


def unmet(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  connect_timeout: int,
  **_,
) -> str:
  """Explains that the others did not connect; arguments as `initialize`."""
  who = 'the processes did not all meet'
  if process_id == 0:
    who = (
      f'process 0 waited at {coordinator_address} for the other '
      f'{num_processes - 1} of --num_processes={num_processes}, and not all '
      'of them came'
    )
  elif process_id is not None:
    who = (
      f'process {process_id} did not reach all of --num_processes='
      f'{num_processes} through --coordinator_address={coordinator_address}, '
      'where process 0 should be'
    )
  return (
    f'{who} within --connect_timeout={connect_timeout} seconds. Start every '
    'process, each with its own --process_id and all with the same address '
    'and number, and see that no firewall closes the port.'
  )


def is_alone() -> bool:
  """Whether this is the only process; starts no device if it is."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def check_same(text: str, what: str) -> None:
  """Makes sure that all processes have the same text.

  Args:
    text: text of any number of lines.
    what: name of the text, for the message: `the configuration`.

  Raises:
    ConfigError: the texts differ; raised on every process.
  """
  if is_alone():
    return
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  if (digests == digest).all():
    return
  hosts = gather_texts(socket.gethostname())
  texts = gather_texts(text)
  # The most frequent text; on a tie, the text of the lowest process.
  (expected, _), *_ = Counter(texts).most_common(1)
  reference = texts.index(expected)
  differing = [i for i, other in enumerate(texts) if other != expected]
  error = errors.ConfigError(
    f'the processes disagree on {what}. Not as on process {reference} '
    f'({hosts[reference]}): {_names(differing, hosts)}.\n'
    f'{_difference(reference, expected, differing[0], texts[differing[0]])}\n'
    'Start the same command with the same files and versions everywhere.'
  )
  error.on_every_host = True
  raise error


def _names(processes: Sequence[int], hosts: Sequence[str]) -> str:
  shown = [f'process {i} ({hosts[i]})' for i in processes[:_LINES_SHOWN]]
  if len(processes) > len(shown):
    shown.append(f'{len(processes) - len(shown)} more')
  return ', '.join(shown)


def _difference(index: int, text: str, other_index: int, other: str) -> str:
  """Shows the first lines in which two texts differ."""
  names = {'-': f'process {index}', '+': f'process {other_index}'}
  lines = [
    f'  {names[line[0]]}: {line[1:].strip()}'
    for line in difflib.unified_diff(
      text.splitlines(), other.splitlines(), n=0, lineterm=''
    )
    if line[0] in names and line[:3] not in ('---', '+++')
  ]
  if len(lines) > _LINES_SHOWN:
    lines[_LINES_SHOWN:] = ['  ...']
  return '\n'.join(lines)


def raise_together(
  error: errors.UserError | errors.PreemptedError | None,
) -> None:
  """Raises an error on every process if any process has one.

  All processes call this at the same place, with or without an error, because
  they would otherwise wait for a process that stopped. With one process it just
  raises `error`.

  Args:
    error: error of this process, if any.

  Raises:
    UserError: `error` itself; or an error of the same class as another
      process's, with a message that names that process.
    PreemptedError: likewise.
  """
  if is_alone():
    if error is not None:
      raise error
    return
  failed = multihost_utils.process_allgather(np.bool_(error is not None))
  if not failed.any():
    return
  kinds = gather_texts('' if error is None else type(error).__name__)
  texts = gather_texts(f'{socket.gethostname()}\n{error or ""}')
  if error is None:
    first = int(np.flatnonzero(failed)[0])
    host, _, message = texts[first].partition('\n')
    kind = getattr(errors, kinds[first], errors.UserError)
    error = kind(f'process {first} ({host}) stopped: {message}')
  error.on_every_host = True
  raise error


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Raises a UserError of the block on all processes.

  For work that each process does alone, such as reading files. No process may
  wait for another inside the block.
  """
  error = None
  try:
    yield
  except errors.UserError as e:
    error = e
  raise_together(error)


def gather_texts(text: str) -> list[str]:
  """Returns every process's text, in process order; all processes call it."""
  if is_alone():
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(1, sizes.max()), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]


def lost_host(error: BaseException) -> str | None:
  """Explains an error that was caused by a lost process.

  Args:
    error: error that ended a stage.

  Returns:
    A message for the user; None if the error has another cause.
  """
  if not jax.distributed.is_initialized():
    return None
  seen: BaseException | None = error
  while seen is not None:
    is_runtime = isinstance(seen, jax.errors.JaxRuntimeError)
    # Gloo raises ValueErrors.
    if (is_runtime and _LOST.search(str(seen))) or 'Gloo ' in str(seen):
      return f'{LOST}. The error: {_first_line(seen)}'
    seen = seen.__cause__ or seen.__context__
  return None


def _first_line(error: BaseException) -> str:
  line = (str(error).strip() or type(error).__name__).splitlines()[0]
  return (line if len(line) <= 300 else line[:300] + '…').rstrip('.')


def leave(code: int, *, wait: bool) -> NoReturn:
  """Ends this process, whatever the others do.

  A normal exit would wait for all processes, and for the saves they share.

  Args:
    code: exit code.
    wait: whether to wait a few seconds for the others to end, so that process 0
      does not end them before they have printed their errors.
  """
  for stream in sys.stdout, sys.stderr:
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  if wait and jax.distributed.is_initialized():
    timer = threading.Timer(_GRACE_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
  os._exit(code)
