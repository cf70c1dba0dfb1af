"""The settings that determine what a run learns, as JSON.

Describes the objects that gin built, defaults included, and not the text of the
gin files. So another file, another order, or a macro in place of a number does
not count as a change.
"""

from collections.abc import Mapping
import dataclasses
import functools
import numbers
from typing import Any

from perlhf_jax.core import code_digest
from perlhf_jax.core import operative_config
from perlhf_jax.core import user_code

# The entry with an object's class.
CLASS = 'class'


def describe(value: Any) -> Any:
  """Describes a setting as a JSON value.

  Args:
    value: a plain value; a list, tuple or mapping of settings; a function; or
      an object with fields or public attributes, such as an
      `optimizers.Optimizer` or a user's algorithm.

  Returns:
    For an object, `{'class': name, field: …}`, with the `code` of a user's
    class. For a function, its name, its code and the arguments that a partial
    or gin binds. Code is a digest, see `code_digest`.
  """
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    return float(value)
  if isinstance(value, Mapping):
    return {str(name): describe(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [describe(each) for each in value]
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = [each.name for each in dataclasses.fields(value) if each.init]
    return _object(value, {name: getattr(value, name) for name in names})
  if callable(value):
    return _function(value)
  return _object(value, getattr(value, '__dict__', {}))


def _object(value: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
  public = {n: v for n, v in fields.items() if not n.startswith('_')}
  code = code_digest.digest(type(value))
  own = {} if code is None else {'code': code}
  return {CLASS: type(value).__qualname__, **own, **describe(public)}


def _function(function: Any) -> dict[str, Any]:
  bound = operative_config.bound_values(function)
  while isinstance(function, functools.partial):
    names = [f'argument {i}' for i in range(len(function.args))]
    given = dict(zip(names, function.args, strict=True)) | function.keywords
    bound |= {name: describe(each) for name, each in given.items()}
    function = function.func
  if not hasattr(function, '__qualname__'):
    bound |= describe(getattr(function, '__dict__', {}))
  return {
    'function': user_code.name_of(function),
    'code': code_digest.digest(function),
    'bound': bound,
  }
