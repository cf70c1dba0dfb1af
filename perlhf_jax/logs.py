"""What a command logs: our own INFO lines, and warnings of any library."""

from collections.abc import Iterator
import contextlib
import logging as std_logging
import os
import pathlib
import re
import sys
import tempfile
import traceback

from absl import flags
from absl import logging

from perlhf_jax.core import outside

# Lines that TensorFlow prints on import, before it reads any setting.
_NOISE = re.compile(
  rb'I\d{4} .*|'
  rb'WARNING: All log messages before absl::InitializeLog\(\).*|'
  rb'To enable the following instructions: .*'
)

_GIN_SEARCH = os.path.join('gin', 'resource_reader.py')
_ORBAX = os.path.join('orbax', 'checkpoint') + os.sep
# When one of many writes to a disk fails, Orbax raises its error and closes the
# loop that waits for them; of each of the others asyncio and TensorStore say
# that nobody waits any more.
_ASYNCIO = os.path.join('asyncio', 'base_events.py')
_LOOP_IS_CLOSED = 'Event loop is closed'
_OUR_ROOT = str(pathlib.Path(__file__).resolve().parent) + os.sep


def silence_native_libraries() -> None:
  """Silences C++ libraries; call it before they are imported.

  TensorFlow and XLA report missing GPUs and the like on every start. Values
  that the user has set are kept.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
  """Drops the lines that TensorFlow prints while it is being imported.

  No setting silences them. So stderr, that of C++ code included, is held back
  until the end of the block and printed then without these lines.
  """
  sys.stderr.flush()
  real = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(real, 2)
      os.close(real)
      held.seek(0)
      for line in held:
        if not _NOISE.match(line):
          os.write(2, line)


def show() -> None:
  """Shows on stderr our INFO lines, and all warnings and errors.

  The commands call it. A program that calls their functions, such as
  `train_sft.train_sft`, must call it itself to see their progress, before it
  imports TensorFlow or anything that does. A second call changes nothing.
  """
  silence_native_libraries()
  # absl's own flags keep their defaults; without this call absl warns that it
  # logs before flags are parsed.
  flags.FLAGS.mark_as_parsed()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(_Formatter())
  handler.addFilter(_is_for_users)
  sys.unraisablehook = _show_unraisable


def show_process(index: int) -> None:
  """Lets only process 0 print what all processes would print.

  Args:
    index: index of this process; other processes than 0 print only warnings
      and errors, each with this index in front.
  """
  if not index:
    return
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_handler().setFormatter(_Formatter(f'[{index}] '))
  sys.stdout = open(os.devnull, 'w')


def _is_for_users(record: std_logging.LogRecord) -> bool:
  """Returns whether to show a line; INFO lines of libraries are hidden."""
  # Gin looks for an included file in several places and logs each miss as an
  # error. cli/gin_scan.py has already found the file.
  if record.pathname.endswith(_GIN_SEARCH):
    return False
  # Orbax also raises what it logs with a traceback.
  if record.exc_info and _ORBAX in record.pathname:
    return False
  if record.pathname.endswith(_ASYNCIO) and _is_of_a_save(record.exc_info):
    return False
  if record.levelno >= std_logging.WARNING:
    return True
  if record.pathname.startswith(_OUR_ROOT):
    return True
  # What is neither ours nor an installed package is the user's own module.
  return not {'site-packages', 'dist-packages'}.intersection(
    pathlib.Path(record.pathname).parts
  )


def _is_of_a_save(exc_info) -> bool:
  """Says whether an error is of Orbax, or of TensorStore that it uses."""
  error = exc_info[1] if exc_info else None
  if error is None:
    return False
  frames = traceback.walk_tb(error.__traceback__)
  if any(_ORBAX in frame.f_code.co_filename for frame, _ in frames):
    return True
  return isinstance(error, ValueError) and outside.failure_of(error) is not None


def _show_unraisable(unraisable) -> None:
  """Shows an error that nobody can catch, unless it only follows another."""
  if str(unraisable.exc_value) != _LOOP_IS_CLOSED:
    sys.__unraisablehook__(unraisable)


class _Formatter(std_logging.Formatter):
  """Formats `12:34:56 message`, with the level where it is not INFO."""

  def __init__(self, prefix: str = ''):
    super().__init__('%(asctime)s %(message)s', datefmt='%H:%M:%S')
    self._prefix = prefix

  def format(self, record: std_logging.LogRecord) -> str:
    """Formats one line."""
    line = super().format(record)
    if record.levelno == std_logging.INFO:
      return self._prefix + line
    time, _, message = line.partition(' ')
    return f'{self._prefix}{time} {record.levelname}: {message}'
