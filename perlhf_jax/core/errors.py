"""Errors that a user can act on.

`main` prints these without a traceback: each message names the offending
thing and says what to do about it.
"""

import os

# Exit code (EX_TEMPFAIL, 75) of a command that goes on when it is started
# again; launchers do so.
GOES_ON = os.EX_TEMPFAIL


class UserError(Exception):
  """A mistake in what the user gave, not in this library.

  Attributes:
    on_every_host: whether every process of a run on several hosts raises it,
      so that they can still do together what needs all of them, such as a
      save.
    exit_code: of a command that ends with it.
  """

  on_every_host = False
  exit_code = 2


class ConfigError(UserError):
  """A configuration that cannot be run as written."""


class DataError(UserError):
  """A data file or record that cannot be used."""


class CheckpointError(UserError):
  """A checkpoint that is missing, damaged or of another model."""


class OutsideError(UserError):
  """A failure of the outside world that somebody has to mend: a full disk."""


class PassingError(OutsideError):
  """A failure of the outside world that may be over at the next start."""

  exit_code = GOES_ON


class PreemptedError(Exception):
  """A run that was told to stop, and has: nothing is lost, nobody is wrong.

  Attributes:
    on_every_host: see `UserError`.
  """

  on_every_host = False
