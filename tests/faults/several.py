"""Commands that get in each other's way, or that lose each other."""

import signal
import socket

import cases
import comparison
import worlds

# Of one that is lost, in seconds.
_LOST = '--heartbeat_timeout=10', '--connect_timeout=20'


def writers(case) -> str:
  """The same command twice at once."""
  case.prepare(case.random.choice([0, worlds.HALF]))
  case.what = 'the same command twice at once'
  one = case.start()
  if case.number % 2:
    case.what = 'the same command again, a little later'
    one.wait_until(lambda: False, case.some_time())
  other = case.start()
  names = ['another run', case.folder]
  outcomes = [case.end(each, (0, 2), names) for each in (one, other)]
  done = [each for each in outcomes if each.code == 0]
  if not done:
    raise cases.Failure(cases.STUCK, str([o.messages for o in outcomes]))
  case.compare(done[0])
  return cases.RECOVERED if len(done) == 2 else cases.CLEAR


def reader(case) -> str:
  """A model is read while a training command writes it."""
  trains = {short: stage for stage, short in worlds.TRAINING.items()}
  short = worlds.READING[case.stage]
  model = case.folder / 'model'
  case.world.wanted(case.stage)
  case.world.copy(short, model, worlds.HALF)
  # Training writes the folder that is read.
  (case.folder / 'run').symlink_to(model)
  case.what = f'read while {trains[short]} goes on'
  training = case.world.start(trains[short], case.folder)
  training.wait_until(lambda: False, case.some_time())
  outcome = case.run(codes=(0,))
  steps = range(worlds.HALF, worlds.LAST + 1, worlds.PERIOD)
  if case.stage != 'inspect':  # It shows figures of the run, too.
    case.compare(outcome, steps)
  case.end(training, codes=(0,))
  made = case.world.made(trains[short], case.folder, outcome)
  wanted = case.world.wanted(trains[short])
  found = comparison.difference(made, wanted)
  if found is not None:
    raise cases.Failure(cases.SILENT, f'the run: {found}')
  return cases.RECOVERED


def hosts(case) -> str:
  """One of two processes is killed, stopped, or does not come."""
  wanted = _wanted_of_two(case)
  ways = ('SIGKILL of', 'SIGKILL of', 'SIGTERM to', 'never there:')
  way = ways[case.number % len(ways)]
  index = case.random.randrange(2)
  case.what = f'{way} process {index} of 2'
  if way.startswith('never'):
    started = [_start(case, 1 - index, _port())]
    case.end(started[0], codes=(75,))
  else:
    started = _start_both(case)
    number = signal.SIGTERM if 'TERM' in way else signal.SIGKILL
    cases.kill_at(started[index], case, case.random.random() < 0.3, number)
    if number == signal.SIGKILL:
      started[index].kill()
    for i, each in enumerate(started):
      is_killed = number == signal.SIGKILL and i == index
      case.end(each, codes=(0, -9, 137) if is_killed else (0, 75))
  for _ in range(3):
    outcomes = [case.end(each) for each in _start_both(case)]
    if not any(each.code for each in outcomes):
      break
  else:
    raise cases.Failure(cases.STUCK, str([o.messages for o in outcomes]))
  made = comparison.of_run(case.model_dir, worlds.LAST)
  found = comparison.difference(made, wanted)
  if found is not None:
    raise cases.Failure(cases.SILENT, found)
  return cases.RECOVERED


def _wanted_of_two(case):
  """What two processes make; other devices, other last bits."""
  world = case.world
  with world.making:
    home = world.home / f'two_{case.stage}'
    if not home.exists():
      world.wanted(case.stage)
      home.mkdir()
      folder, case.folder = case.folder, home
      try:
        for each in _start_both(case):
          case.end(each, codes=(0,))
      finally:
        case.folder = folder
  return comparison.of_run(home / 'run', worlds.LAST)


def _start_both(case):
  port = _port()
  return [_start(case, index, port) for index in range(2)]


def _start(case, index, port):
  return case.start(
    f'--coordinator_address=127.0.0.1:{port}',
    '--num_processes=2',
    f'--process_id={index}',
    *_LOST,
  )


def _port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]
