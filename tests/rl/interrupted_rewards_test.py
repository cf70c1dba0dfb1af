"""A reward function that hangs, or leaves, does not take the run with it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import reward_functions
from perlhf_jax.training import preemption

LISTS = ['p'], ['r']


def hangs(prompts, responses):
  time.sleep(60)


def hangs_while_it_is_read(prompts, responses):
  yield 1.0
  time.sleep(60)


def makes_another_error(prompts, responses):
  try:
    time.sleep(60)
  except BaseException:
    raise ConnectionError('the judge is gone') from None


def catches_errors(prompts, responses):
  while True:
    try:
      time.sleep(60)
    except Exception:
      pass


def waits_for_a_thread(prompts, responses):
  threading.Event().wait(60)


HANGING = [
  hangs,
  hangs_while_it_is_read,
  makes_another_error,
  catches_errors,
  waits_for_a_thread,
]


def _tell_soon():
  timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
  timer.start()
  return timer


@pytest.mark.parametrize('function', HANGING)
def test_the_first_sigterm_ends_it(function):
  began = time.monotonic()
  with preemption.Notice() as notice:
    timer = _tell_soon()
    with pytest.raises(errors.PreemptedError) as error:
      reward_functions.call(function, *LISTS)
    timer.join()
    time.sleep(0.1)  # Another thread notes it.
    assert notice.agreed()
  assert time.monotonic() - began < 20
  assert function.__name__ in str(error.value)
  assert not preemption._calls


def test_it_does_not_begin_after_sigterm():
  called = []
  with preemption.Notice():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    with pytest.raises(errors.PreemptedError):
      reward_functions.call(lambda p, r: called.append(1), *LISTS)
  assert not called


@pytest.mark.parametrize('function', HANGING)
def test_a_time_limit_ends_it(function):
  began = time.monotonic()
  with pytest.raises(errors.DataError) as error:
    reward_functions.call(function, *LISTS, time_limit=0.3)
  assert time.monotonic() - began < 20
  message = str(error.value)
  assert f'{function.__name__} took longer than the 0.3 seconds' in message
  assert 'REWARD_TIME_LIMIT' in message


def test_one_that_is_done_in_time_is_left_alone():
  for _ in range(3):
    scores = reward_functions.call(lambda p, r: [2.0], *LISTS, time_limit=0.2)
    assert scores.tolist() == [2.0]
  # A signal that comes late ends nothing.
  os.kill(os.getpid(), preemption._TIME_IS_UP)
  scores = reward_functions.call(
    lambda p, r: [time.sleep(0.3) or 1.0], *LISTS, time_limit=20
  )
  assert scores.tolist() == [1.0]


def test_its_own_alarms_still_ring():
  def times_itself(prompts, responses):
    def ring(*_):
      raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
      time.sleep(30)
    except TimeoutError:
      return [-1.0]

  before = signal.getsignal(signal.SIGALRM)
  try:
    scores = reward_functions.call(times_itself, *LISTS, time_limit=20)
  finally:
    signal.signal(signal.SIGALRM, before)
  assert scores.tolist() == [-1.0]


def test_in_another_thread_it_runs_to_its_end():
  scores = []
  thread = threading.Thread(
    target=lambda: scores.append(
      reward_functions.call(lambda p, r: [2.0], *LISTS, time_limit=20)
    )
  )
  thread.start()
  thread.join()
  assert scores[0].tolist() == [2.0]


def leaves(prompts, responses):
  sys.exit(3)


def leaves_while_it_is_read(prompts, responses):
  yield 1.0
  sys.exit('enough')


@pytest.mark.parametrize('function', [leaves, leaves_while_it_is_read])
def test_sys_exit_is_an_error_of_the_function(function):
  with pytest.raises(errors.DataError) as error:
    reward_functions.call(function, *LISTS)
  message = str(error.value)
  assert function.__name__ in message and 'SystemExit' in message
  assert 'interrupted_rewards_test.py' in message


_STUBBORN = """
import os, signal, threading, time
from perlhf_jax.rl import reward_functions
from perlhf_jax.training import preemption

preemption._INTERRUPTED_SECONDS = 0.5

def stubborn(prompts, responses):
  print('called', flush=True)
  while True:
    try:
      time.sleep(60)
    except BaseException:
      pass

with preemption.Notice():
  {tell}
  reward_functions.call(stubborn, ['p'], ['r'], time_limit={limit})
"""


@pytest.mark.parametrize(
  ('tell', 'limit', 'code', 'wanted'),
  [
    (
      'threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()',
      None,
      75,
      'perlhf: stopped by SIGTERM; the reward function __main__.stubborn can',
    ),
    (
      'pass',
      1,
      2,
      'perlhf: error: the reward function __main__.stubborn took longer than',
    ),
  ],
)
def test_one_that_cannot_be_interrupted_ends_the_process(
  tell, limit, code, wanted
):
  result = subprocess.run(
    [sys.executable, '-c', _STUBBORN.format(tell=tell, limit=limit)],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert (result.returncode, result.stdout) == (code, 'called\n')
  (line,) = result.stderr.splitlines()
  assert line.startswith(wanted)
  assert 'newest checkpoint' in line
