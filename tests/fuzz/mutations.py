"""Makes a damaged or hostile file of a good one."""

import copy
import json
import random

# What a JSON value is replaced by: other types, bounds, and traps.
VALUES = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2**31,
  2**63,
  -(2**64),
  10**400,
  0.5,
  1e308,
  -0.0,
  '',
  '0',
  'x' * 300,
  '\x00',
  '\ud800',
  '../../etc/passwd',
  '/dev/zero',
  '²',
  '(.+?)' * 8 + r'\8[#!]',
  '__class__',
  [],
  {},
  [[]],
  [None],
  {'': None},
  {'path': 3},
)
_TOKENS = (
  *(b'NaN', b'-Infinity', b'1e999', b'{', b'}', b'[', b']', b'"', b'\\u0000'),
  *(b',', b':', b'\n', b'\x00', b'\xff', b'9' * 5000, b'[' * 2000, b'null'),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
  """Changes a file in one to three places, by bytes or as JSON.

  Args:
    data: the file, or one line of JSON.
    rng: decides what is changed.
  """
  for _ in range(rng.randint(1, 3)):
    change = rng.choice((_change_json, _change_json, _change_bytes))
    data = change(data, rng)
  return data


def _change_json(data: bytes, rng: random.Random) -> bytes:
  head, line, tail = _a_line(data, rng)
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return _change_bytes(data, rng)
  changed = json.dumps(_replace(value, rng)).encode()
  return head + changed + tail


def _a_line(data: bytes, rng: random.Random) -> tuple[bytes, bytes, bytes]:
  """Splits into one line, if each is JSON, and what is around it."""
  lines = data.split(b'\n')
  index = rng.randrange(len(lines))
  if lines[index].strip() and len(lines) > 1:
    before, after = lines[:index], lines[index + 1 :]
    head = b''.join(each + b'\n' for each in before)
    return head, lines[index], b''.join(b'\n' + each for each in after)
  return b'', data, b''


def _replace(value, rng: random.Random):
  """Returns a JSON value with one node replaced, removed, doubled or nested."""
  is_inner = isinstance(value, dict | list) and value and rng.random() < 0.85
  if not is_inner:
    action = rng.randrange(6)
    if action == 0:
      for _ in range(rng.choice((1, 5, 200))):
        value = [value] if rng.random() < 0.5 else {'a': value}
      return value
    if action == 1 and isinstance(value, int | float):
      return value * rng.choice((-1, 0, 10**6, 10**12)) + rng.choice((0, 1))
    if action == 2 and isinstance(value, str):
      return value + rng.choice(('\x00', '/..', '{', '²', 'a' * 5000))
    return copy.deepcopy(rng.choice(VALUES))
  value = copy.copy(value)
  key = rng.choice(
    list(value) if isinstance(value, dict) else range(len(value))
  )
  action = rng.randrange(8)
  if action == 0:
    del value[key]
  elif action == 1 and isinstance(value, dict):
    value[rng.choice(('', 'x', 'format_version', '__proto__'))] = value[key]
  elif action == 1:
    value.append(value[key])
  else:
    value[key] = _replace(value[key], rng)
  return value


def _change_bytes(data: bytes, rng: random.Random) -> bytes:
  at = rng.randrange(len(data) + 1)
  to = min(len(data), at + rng.choice((1, 1, 2, 8, 64)))
  action = rng.randrange(6)
  if action == 0:
    return data[:at]
  if action == 1:
    return data[:at] + data[to:]
  if action == 2:
    return data[:at] + rng.choice(_TOKENS) + data[at:]
  if action == 3:
    return data[:at] + data[at:to] * rng.choice((2, 3, 100)) + data[to:]
  if action == 4:
    return data[:at] + rng.randbytes(to - at) + data[to:]
  flipped = bytes(each ^ (1 << rng.randrange(8)) for each in data[at:to])
  return data[:at] + flipped + data[to:]
