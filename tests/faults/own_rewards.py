"""Reward functions that do what none should."""

import json
import math
import signal

import cases
import worlds

_ACTS = 'raise', 'sys.exit', 'NaN', 'hang', 'too few', 'huge', 'too long'


def reward(case) -> str:
  """A reward function fails at one of its calls, in each way in turn."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  act = _ACTS[case.number % len(_ACTS)]
  call = case.random.randint(1, 2)
  case.what = f'reward function: {act} at call {call}'
  if act == 'huge':
    return _huge(case, call)
  if act == 'too long':
    case.run(act=f'hang:{call}', codes=(2,), names=['took longer than the 12'])
    return case.recover(cases.CLEAR)
  command = case.start(act=f'{act}:{call}')
  if act == 'hang':
    command.wait_until(lambda: 'commas: hang' in command.err)
    command.wait_until(lambda: False, case.random.uniform(0, 1))
    command.send(signal.SIGTERM)
    case.end(command, codes=(75,), names=['stopped by SIGTERM'])
    return case.recover()
  case.end(command, codes=(2,), names=['fault_tasks.commas'])
  return case.recover(cases.CLEAR)


def _huge(case, call):
  """A finite score is learned from, and whoever looks on is told."""
  outcome = case.run(act=f'huge:{call}', codes=(0, 2), names=['commas'])
  if outcome.code:
    return case.recover(cases.CLEAR)
  text = (case.model_dir / 'metrics.jsonl').read_text()
  numbers = [
    value
    for line in text.splitlines()
    for value in json.loads(line).values()
    if isinstance(value, float)
  ]
  if not all(map(math.isfinite, numbers)) or 'WARNING' not in outcome.err:
    raise cases.Failure(cases.SILENT, 'no alarm, or a number that is infinite')
  return cases.CLEAR
