"""Guards a whole training command: locks MODEL_DIR, and explains failures.

Only one command at a time writes into a MODEL_DIR. If a disk, a network or the
like fails, one message says what became of the run.
"""

from collections.abc import Callable
import contextlib
import contextvars
import functools
from typing import Any, TypeVar

from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.core import outside
from perlhf_jax.training import multihost
from perlhf_jax.training import run_lock
from perlhf_jax.training import step_files

_Function = TypeVar('_Function', bound=Callable[..., Any])

# Actions at the end of the running command.
_at_end: contextvars.ContextVar[contextlib.ExitStack | None] = (
  contextvars.ContextVar('at_end', default=None)
)


def guarded(function: _Function) -> _Function:
  """Decorates the function of a training command with the guards.

  Args:
    function: takes `model_dir`, and only keyword arguments.

  Raises:
    OutsideError: raised by the decorated function if a disk, a network or the
      like fails.
  """

  @functools.wraps(function)
  def run(**arguments):
    with contextlib.ExitStack() as at_end:
      token = _at_end.set(at_end)
      try:
        return function(**arguments)
      except (errors.UserError, errors.PreemptedError):
        raise
      except Exception as error:
        if outside.failure_of(error) is None:
          raise  # A bug of this library.
        raise _named(error, arguments['model_dir']) from error
      finally:
        _at_end.reset(token)

  return run


def hold(model_dir: epath.Path) -> Callable[[], None]:
  """Locks a folder for the running command.

  Args:
    model_dir: the folder; the first process locks it for all processes.

  Returns:
    A function that raises an OutsideError, on the first process, if the folder
    was deleted or another run took it over. Outside a `guarded` function,
    nothing is locked.

  Raises:
    CheckpointError: another run uses the folder; on every process.
    OutsideError: the folder cannot be written.
  """
  at_end = _at_end.get()
  if at_end is None:
    return lambda: None
  lock = error = None
  if jax.process_index() == 0:
    lock = run_lock.RunLock(model_dir)
    try:
      at_end.enter_context(lock.held())
    except errors.UserError as e:
      error = e
    except Exception as e:
      error = _named(e, str(model_dir))
      if error is None:
        raise
  multihost.raise_together(error)
  return (lambda: None) if lock is None else lock.check


def _named(error: Exception, model_dir: str) -> errors.OutsideError | None:
  """Returns an error that says what failed, what is kept, and what to do."""
  path = step_files.absolute(model_dir)
  step = is_there = None
  # This reads the disk that has just failed.
  with contextlib.suppress(Exception):
    is_there = path.exists()
    step = step_files.newest_step(path)
  if step is not None:
    kept = (
      f'Step {step.name} is kept in MODEL_DIR {model_dir}; the same command '
      'goes on from it.'
    )
  elif is_there:
    kept = (
      f'No step was saved in MODEL_DIR {model_dir} yet: the same command '
      'begins again.'
    )
  else:
    kept = (
      f'MODEL_DIR {model_dir} is gone, or cannot be read. When it is back, '
      'the same command goes on from its newest checkpoint.'
    )
  return outside.as_user_error(error, kept)
