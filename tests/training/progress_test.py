import logging as python_logging
import math
import types

import pytest

from perlhf_jax.training import metric_writer
from perlhf_jax.training import progress


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(progress.time, 'perf_counter', lambda: now.seconds)
  return now


@pytest.fixture
def log(caplog):
  caplog.set_level(python_logging.INFO)
  return caplog


def test_throughput_counts_only_timed_steps(clock):
  bar = progress.Progress(start_step=5, total_steps=100, batch_size=8)
  assert bar.examples_per_second == 0
  clock.seconds += 50  # Compiling the first step.
  bar.resume(6)
  clock.seconds += 2
  bar.pause(10)
  assert bar.examples_per_second == 4 * 8 / 2
  clock.seconds += 30  # Evaluating.
  bar.resume(10)
  clock.seconds += 6
  bar.pause(22)
  assert bar.examples_per_second == 16 * 8 / 8
  bar.pause(22)  # Pausing twice changes nothing.
  assert bar.examples_per_second == 16 * 8 / 8


def test_throughput_since_the_last_record(clock):
  bar = progress.Progress(start_step=0, total_steps=100, batch_size=8)
  # Every step has compiled.
  first = bar.since_last_record()
  assert list(first) == list(metric_writer.TIMING)
  assert all(math.isnan(value) for value in first.values())
  bar.resume(1)
  clock.seconds += 3
  bar.pause(4)
  clock.seconds += 70  # Evaluating.
  bar.resume(4)
  clock.seconds += 5
  bar.pause(6)
  # Five steps in eight seconds, whatever came between.
  expected = {'examples_per_second': 5 * 8 / 8, 'seconds_per_step': 8 / 5}
  assert bar.since_last_record() == expected
  bar.resume(6)
  clock.seconds += 1
  bar.pause(10)
  expected = {'examples_per_second': 32.0, 'seconds_per_step': 0.25}
  assert bar.since_last_record() == expected
  assert bar.examples_per_second == 9 * 8 / 9


def test_steps_that_compile_among_others_are_left_out(clock):
  bar = progress.Progress(start_step=0, total_steps=100, batch_size=8)
  bar.resume(1)
  for done in (1, 2, 3):
    clock.seconds += 2
    bar.pause(done)
    bar.resume(done)
  clock.seconds += 40  # The fourth step, and compiling the fifth.
  bar.resume(5)
  clock.seconds += 4
  bar.pause(7)
  # Of the steps that were waited for, 2, 3, 6 and 7.
  assert bar.since_last_record()['seconds_per_step'] == (3 * 2 + 4) / 4


def test_log_lines(clock, log):
  bar = progress.Progress(start_step=0, total_steps=100, batch_size=8)
  bar.report(1, 'train', {'loss': 2.0})
  bar.resume(1)
  clock.seconds += 9
  bar.pause(10)
  bar.report(10, 'train', {'loss': 1.23456, 'grad_norm': 0.5})
  bar.report(10, 'eval', {'roc_auc': 0.75})
  bar.close()
  assert [record.getMessage() for record in log.records] == [
    'train 1/100: loss 2',
    'train 10/100: loss 1.235 grad_norm 0.5 | 8.0 examples/s, ETA 1:30',
    'eval 10/100: roc_auc 0.75',
  ]


def test_a_terminal_gets_a_bar(clock, log, monkeypatch, capsys):
  monkeypatch.setattr(progress.sys.stderr, 'isatty', lambda: True)
  bar = progress.Progress(start_step=2, total_steps=10, batch_size=8)
  bar.report(4, 'train', dict.fromkeys(('score', 'kl_k1', 'c', 'd', 'e'), 1.5))
  bar.report(4, 'eval', {'roc_auc': 0.75})
  bar.close()
  shown = capsys.readouterr().err
  assert 'score 1.5 kl_k1 1.5 c 1.5 d 1.5]' in shown
  assert '/10' in shown
  assert 'eval at step 4: roc_auc 0.75' in shown
  assert not log.records
