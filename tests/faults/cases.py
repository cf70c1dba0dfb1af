"""One fault: a command that it happens to, and a verdict on how that ends."""

import random
import shutil
import signal

import comparison
import worlds

RECOVERED = 'recovered to the bit'
CLEAR = 'clear message'
SILENT = 'silently different'
TRACEBACK = 'traceback'
HANG = 'hang'
# Another code than those that are documented, or killed by a signal.
CRASH = 'other exit code'
UNCLEAR = 'unclear message'
STUCK = 'does not recover'
GOOD = RECOVERED, CLEAR
BAD = SILENT, TRACEBACK, HANG, CRASH, UNCLEAR, STUCK

_MISTAKE, _GOES_ON = 2, 75
_RESTARTS = 3
_FIRST_SECONDS = 0.5


class Failure(Exception):
  """What should not happen.

  Attributes:
    verdict: one of `BAD`.
  """

  def __init__(self, verdict, note):
    super().__init__(note)
    self.verdict = verdict


class Case:
  """A folder in which a fault happens.

  Attributes:
    world: in which.
    stage: the command.
    folder: in which it works: `run` of training, else `model` and `out`.
    random: draws what is random of the fault.
    number: which of its kind it is, from 0 on.
    what: the fault, in words.
    said: all that the commands have said on stderr.
  """

  def __init__(self, world, stage, folder, seed, number):
    self.world, self.stage, self.folder = world, stage, folder
    self.random = random.Random(seed)
    self.number = number
    self.what = ''
    self.said = ''
    self.options = {}
    folder.mkdir(parents=True)

  @property
  def trains(self) -> bool:
    """Whether the command is a training one."""
    return self.stage in worlds.TRAINING

  @property
  def model_dir(self):
    """The MODEL_DIR that the command writes or reads."""
    return self.folder / ('run' if self.trains else 'model')

  def prepare(self, step=worlds.HALF) -> None:
    """Puts down what the command finds.

    Args:
      step: of a training command, at which it was stopped before; 0 for never.
    """
    self.world.wanted(self.stage)
    if not self.trains:
      self.world.copy(worlds.READING[self.stage], self.model_dir)
    elif step:
      short = worlds.TRAINING[self.stage]
      self.world.copy(short, self.model_dir, step)

  def start(self, *more, **options):
    """Starts the command; see `World.start`."""
    options = {**self.options, **options}
    return self.world.start(self.stage, self.folder, *more, **options)

  def run(self, *more, codes=(0, _MISTAKE, _GOES_ON), names=(), **options):
    """Starts the command and waits for its end; see `end`."""
    return self.end(self.start(*more, **options), codes, names)

  def end(self, command, codes=(0, _MISTAKE, _GOES_ON), names=()):
    """Waits for the end of a command, and checks it.

    Args:
      command: that was started.
      codes: with which it may end.
      names: words of which one must be in its message, if there is one.

    Raises:
      Failure: it ends as no command should.
    """
    outcome = command.wait()
    self.said += outcome.err
    if outcome.code is None:
      raise Failure(HANG, _last(outcome))
    if 'Traceback (most recent call last)' in outcome.err:
      raise Failure(TRACEBACK, _last(outcome))
    if outcome.code not in codes:
      raise Failure(
        CRASH if outcome.code not in (0, _MISTAKE, _GOES_ON) else STUCK,
        f'code {outcome.code}: {_last(outcome)}',
      )
    if outcome.code in (_MISTAKE, _GOES_ON):
      if len(outcome.messages) != 1:
        raise Failure(UNCLEAR, f'{outcome.messages}: {_last(outcome)}')
      if names and not any(str(n) in outcome.messages[0] for n in names):
        raise Failure(UNCLEAR, f'names none of {names}: {outcome.messages[0]}')
    return outcome

  def recover(self, verdict=RECOVERED) -> str:
    """Starts the same command again, until it is done, and compares.

    Args:
      verdict: to return; `CLEAR` if somebody had to do something before.

    Raises:
      Failure: it does not recover, or with another result.
    """
    if self.stage == 'convert' and (self.folder / 'out').exists():
      self.compare(None)  # It is there whole, or not at all.
      return verdict
    for _ in range(_RESTARTS):
      outcome = self.run()
      if outcome.code != _GOES_ON:
        break
    if outcome.code:
      raise Failure(STUCK, outcome.messages[0])
    self.compare(outcome)
    return verdict

  def compare(self, outcome, steps=(worlds.LAST,)) -> None:
    """Compares what was made with what is right.

    Args:
      outcome: of the command that has made it.
      steps: of the model that was read, any of which is right.

    Raises:
      Failure: it is something else.
    """
    try:
      made = self.world.made(self.stage, self.folder, outcome)
    except (OSError, ValueError, KeyError) as error:
      raise Failure(SILENT, f'{type(error).__name__}: {error}') from error
    found = [
      comparison.difference(
        made, self.world.wanted(self.stage, step), self.said
      )
      for step in steps
    ]
    if None not in found:
      raise Failure(SILENT, f'other than it should be: {found[0]}')

  def remove(self) -> None:
    """Removes its folder."""
    shutil.rmtree(self.folder, ignore_errors=True)

  def some_time(self) -> float:
    """Draws a moment of the command, in seconds from its start."""
    return self.random.uniform(0, 1.05) * self.world.seconds(self.stage)


def is_save_under_way(case) -> bool:
  """Whether the files of a step, or of what is written, are being made."""
  if case.trains:
    folder = case.folder / 'run' / 'checkpoints'
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return any(not name.isdigit() for name in names)
  known = {'model', 'sft', 'rm', 'out', 'lines.jsonl', 'data'}
  return bool({p.name for p in case.folder.iterdir()} - known)


def kill_at(command, case, in_a_save, number=signal.SIGKILL) -> None:
  """Sends a signal at a random moment.

  Args:
    command: to which.
    case: of which it is.
    in_a_save: whether to wait until it writes.
    number: of the signal.
  """
  moment = case.some_time()
  if number == signal.SIGTERM:
    # What Python itself does first, no command can guard.
    moment = max(moment, _FIRST_SECONDS)
  if in_a_save:
    command.wait_until(lambda: is_save_under_way(case))
    moment = case.random.uniform(0, 0.1)
  command.wait_until(lambda: False, moment)
  command.send(number)


def _last(outcome) -> str:
  lines = [line for line in outcome.err.splitlines() if line.strip()]
  return ' | '.join(lines[-3:])[-600:]
