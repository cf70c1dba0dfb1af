"""Errors that a user can act on.

`main` prints these without a traceback: each message names the offending
thing and says what to do about it.
"""


class UserError(Exception):
  """A mistake in what the user gave, not in this library."""


class ConfigError(UserError):
  """A configuration that cannot be run as written."""


class DataError(UserError):
  """A data file or record that cannot be used."""


class CheckpointError(UserError):
  """A checkpoint that is missing, damaged or of another model."""
