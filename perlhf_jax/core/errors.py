"""Errors that a user can act on.

`main` prints these without a traceback: each message names the cause and says
what to do about it.
"""

import os

# Exit code (EX_TEMPFAIL, 75) of a command that resumes when a launcher starts
# it again.
GOES_ON = os.EX_TEMPFAIL


class UserError(Exception):
  """A mistake in the user's input, not in this library.

  Attributes:
    on_every_host: whether every process of a run on several hosts raises it,
      so that the processes can still save together.
    exit_code: exit code of a command that ends with it.
  """

  on_every_host = False
  exit_code = 2


class ConfigError(UserError):
  """A configuration that cannot be run as written."""


class DataError(UserError):
  """A data file or record that cannot be used."""


class CheckpointError(UserError):
  """A checkpoint that is missing or damaged, or belongs to another model."""


class OutsideError(UserError):
  """An environment failure that somebody must fix, such as a full disk."""


class PassingError(OutsideError):
  """An environment failure that may be gone at the next start."""

  exit_code = GOES_ON


class PreemptedError(Exception):
  """A run that stopped because it was told to; nothing is lost.

  Attributes:
    on_every_host: see `UserError`.
  """

  on_every_host = False
