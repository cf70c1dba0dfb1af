"""Commands that are killed or told to stop, or whose clock jumps."""

import signal

import cases
import worlds

_ON_HOSTS = {*worlds.STAGES} - {'convert', 'inspect'}


def kill(case) -> str:
  """SIGKILL at a random moment, of half of them while something is saved."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  in_a_save = bool(case.number // len(worlds.STAGES) % 2)
  case.what = 'SIGKILL ' + ('in a save' if in_a_save else 'at any moment')
  command = case.start()
  cases.kill_at(command, case, in_a_save)
  case.end(command, codes=(-signal.SIGKILL, 0))
  return case.recover()


def kill_twice(case) -> str:
  """Killed, and killed again when it goes on."""
  case.prepare(0)
  case.what = 'SIGKILL twice'
  for _ in range(2):
    command = case.start()
    cases.kill_at(command, case, case.random.random() < 0.5)
    case.end(command, codes=(-signal.SIGKILL, 0))
  return case.recover()


def sigterm(case) -> str:
  """SIGTERM at a random moment."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  in_a_save = case.random.random() < 0.3
  case.what = 'SIGTERM ' + ('in a save' if in_a_save else 'at any moment')
  command = case.start()
  cases.kill_at(command, case, in_a_save, signal.SIGTERM)
  # Who does not work for long is ended as any process is.
  ends = (0, 75) if case.stage in _ON_HOSTS else (0, -signal.SIGTERM)
  case.end(command, codes=ends, names=['stopped by SIGTERM'])
  return case.recover()


def sigterm_twice(case) -> str:
  """A second SIGTERM, for somebody who cannot wait."""
  case.prepare(0)
  case.what = 'SIGTERM twice'
  command = case.start()
  cases.kill_at(command, case, case.random.random() < 0.5, signal.SIGTERM)
  command.wait_until(lambda: False, case.random.uniform(0, 0.2))
  command.send(signal.SIGTERM)
  case.end(command, codes=(0, 75, 128 + signal.SIGTERM))
  return case.recover()


def clock(case) -> str:
  """The clock jumps, forward or back, up to three times."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  jumps = [
    (case.some_time(), case.random.choice([-3600, 1200, 86400, 3e7]))
    for _ in range(case.random.randint(1, 3))
  ]
  case.what = 'clock: ' + ', '.join(f'{by:+.0f} s' for _, by in jumps)
  outcome = case.run(jumps=jumps, codes=(0,))
  case.compare(outcome)
  return cases.RECOVERED


def nothing(case) -> str:
  """No fault: what is compared is the same each time."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  case.what = 'nothing'
  case.compare(case.run(codes=(0,)))
  return cases.RECOVERED
