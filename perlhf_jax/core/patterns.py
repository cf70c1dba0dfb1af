"""Safe matching of regular expressions that come from files.

A hostile pattern may run for ever: Python's `re` needs years to match `(.+)+!`
with a name of 60 letters. So patterns of an adapter are matched by `regex`,
which has the same syntax and a timeout.
"""

import functools
import re

import regex

from perlhf_jax.core import errors

_MAX_LENGTH = 2_000
_SECONDS = 1.0
# `regex` expands counts: (((a{1000}){1000}){1000}) would fill the memory.
_COUNT = re.compile(r'\{\s*\d*\s*(,\s*\d*\s*)?\}')


@functools.lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern:
  """Compiles a pattern.

  Raises:
    ConfigError: it is too long, counts repetitions, or is not a regular
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
  # Deep nesting overflows the parser's stack.
  except (regex.error, RecursionError) as error:
    raise errors.ConfigError(
      f'{pattern[:200]!r} is not a regular expression ({error}).'
    ) from error


def fullmatch(pattern: str, name: str) -> bool:
  """Returns whether a pattern matches a whole name.

  Raises:
    ConfigError: `compiled` refuses the pattern, or matching takes too long.
  """
  try:
    return compiled(pattern).fullmatch(name, timeout=_SECONDS) is not None
  except TimeoutError as error:
    raise errors.ConfigError(
      f'the pattern {pattern[:200]!r} takes more than {_SECONDS:g} s to match '
      'one name; write a simpler one.'
    ) from error
