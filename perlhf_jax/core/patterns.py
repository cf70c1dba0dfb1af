"""Regular expressions that come from files, which may be made to run for ever.

`(.+)+!` takes Python's `re` years for a name of 60 letters. Patterns of an
adapter are matched by `regex`, whose syntax is that of `re` and which stops.
"""

import functools
import re

import regex

from perlhf_jax.core import errors

_MAX_LENGTH = 2_000
_SECONDS = 1.0
# `regex` writes counts out: (((a{1000}){1000}){1000}) would fill the memory.
_COUNT = re.compile(r'\{\s*\d*\s*(,\s*\d*\s*)?\}')


@functools.lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern:
  """Compiles a pattern.

  Raises:
    ConfigError: it is too long, counts repetitions, or is no regular
      expression.
  """
  if len(pattern) > _MAX_LENGTH:
    raise errors.ConfigError(
      f'a pattern has {len(pattern):,} characters; at most {_MAX_LENGTH:,} are '
      'allowed.'
    )
  if _COUNT.search(pattern):
    raise errors.ConfigError(
      f'{pattern[:200]!r} counts repetitions; write +, * or ? in the place of '
      '{...}.'
    )
  try:
    return regex.compile(pattern)
  # Deep nesting overflows the stack of its parser.
  except (regex.error, RecursionError) as error:
    raise errors.ConfigError(
      f'{pattern[:200]!r} is not a regular expression ({error}).'
    ) from error


def fullmatch(pattern: str, name: str) -> bool:
  """Whether a pattern matches a whole name.

  Raises:
    ConfigError: it is no regular expression, or matching takes too long.
  """
  try:
    return compiled(pattern).fullmatch(name, timeout=_SECONDS) is not None
  except TimeoutError as error:
    raise errors.ConfigError(
      f'the pattern {pattern[:200]!r} takes more than {_SECONDS:g} s to match '
      'one name; write a simpler one.'
    ) from error
