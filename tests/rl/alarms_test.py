import logging

import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import alarms

NAN = float('nan')
HEALTHY = {
  'kl_k1': 2.0,
  'kl_k1_standard_error': 0.1,
  'ratio_deviation': 1e-6,
  'entropy': 1.5,
  'truncated': 0.3,
  'skipped': 0.0,
  'skipped_in_a_row': 0.0,
}


@pytest.fixture(autouse=True)
def _warnings_only(caplog):
  caplog.set_level(logging.WARNING)


def test_healthy_runs_are_quiet(caplog):
  bell = alarms.Alarms()
  for step in range(50):
    assert bell.check(step, HEALTHY) == []
  assert not caplog.text


@pytest.mark.parametrize(
  'name, change, causes',
  [
    (
      'negative_kl',
      {'kl_k1': -0.5},
      ['top-k', 'dropout', 'adapter', 'padding', 'EOS', 'temperature'],
    ),
    ('ratio', {'ratio_deviation': 0.01}, ['dropout', 'bfloat16', 'shifted']),
    ('entropy', {'entropy': 0.001}, ['learning rate', 'KL_BETA', 'reward']),
    (
      'truncated',
      {'truncated': 1.0},
      ['100% of the responses', 'length', 'EOS', 'temperature'],
    ),
    ('skipped', {'skipped': 2.0}, ['NaN', 'learning rate', 'bfloat16']),
    ('outliers', {'outliers': 1.0}, ['cut', 'reward function', 'normalize']),
  ],
)
def test_each_alarm_names_its_causes(caplog, name, change, causes):
  assert alarms.Alarms().check(70, {**HEALTHY, **change}) == [name]
  assert len(caplog.records) == 1
  assert 'Step 70: ' in caplog.text
  for cause in causes:
    assert cause in caplog.text


@pytest.mark.parametrize(
  'change',
  [
    {'kl_k1': -0.29, 'kl_k1_standard_error': 0.1},  # Within noise.
    {'kl_k1': -5e-4, 'kl_k1_standard_error': 0.0},  # Rounding.
    {'kl_k1': -9.0, 'kl_k1_standard_error': float('inf')},  # Noise is unknown.
    {'ratio_deviation': 9e-4},
    {'ratio_deviation': 1e-3},  # No more than what is tolerated.
    {'entropy': 0.011},
    {'entropy': 0.01},
    {'truncated': 0.98},
    dict.fromkeys(
      (
        'kl_k1',
        'kl_k1_standard_error',
        'ratio_deviation',
        'entropy',
        'truncated',
      ),
      NAN,
    ),
  ],
)
def test_what_is_no_alarm(caplog, change):
  assert alarms.Alarms().check(1, {**HEALTHY, **change}) == []
  assert not caplog.text


def test_a_kl_beyond_noise_is_one():
  low = {**HEALTHY, 'kl_k1': -0.31, 'kl_k1_standard_error': 0.1}
  assert alarms.Alarms().check(1, low) == ['negative_kl']


def test_thresholds_are_settings():
  bell = alarms.Alarms(
    ratio_tolerance=0.05, least_entropy=0.2, most_truncated=0.5
  )
  odd = {'ratio_deviation': 0.04, 'entropy': 0.1, 'truncated': 0.6}
  assert bell.check(1, {**HEALTHY, **odd}) == ['entropy', 'truncated']
  assert bell.check(2, {**HEALTHY, 'truncated': 0.5}) == ['truncated']


def test_the_same_alarm_is_not_repeated_on_every_check(caplog):
  bell = alarms.Alarms()
  warned = []
  for check in range(25):
    caplog.clear()
    assert bell.check(check, {**HEALTHY, 'entropy': 0.0}) == ['entropy']
    if caplog.records:
      warned.append(check)
  assert warned == [0, 10, 20]


def test_alarms_do_not_silence_each_other(caplog):
  bell = alarms.Alarms()
  bell.check(1, {**HEALTHY, 'entropy': 0.0})
  bell.check(2, {**HEALTHY, 'entropy': 0.0, 'truncated': 1.0})
  assert [r.getMessage()[:7] for r in caplog.records] == ['Step 1:', 'Step 2:']
  assert 'cut off' in caplog.records[1].getMessage()


def test_the_first_skipped_update_is_an_alarm():
  assert alarms.Alarms().check(1, {**HEALTHY, 'skipped': 1}) == ['skipped']


def test_skipped_updates_are_an_alarm_only_when_new():
  bell = alarms.Alarms()
  assert bell.check(1, {**HEALTHY, 'skipped': 3}) == ['skipped']
  assert bell.check(2, {**HEALTHY, 'skipped': 3}) == []
  assert bell.check(3, {**HEALTHY, 'skipped': 4}) == ['skipped']


def test_ten_skipped_in_a_row_end_the_run_by_default():
  bell = alarms.Alarms()
  bell.check(1, {**HEALTHY, 'skipped': 9, 'skipped_in_a_row': 9})
  with pytest.raises(errors.UserError, match='10 updates in a row'):
    bell.check(2, {**HEALTHY, 'skipped': 10, 'skipped_in_a_row': 10})


def test_too_many_skipped_in_a_row_end_the_run():
  bell = alarms.Alarms(max_skipped_in_a_row=3)
  bell.check(1, {**HEALTHY, 'skipped': 2, 'skipped_in_a_row': 2})
  with pytest.raises(
    errors.UserError, match=r'Step 9: 3 updates .* last good checkpoint is kept'
  ):
    bell.check(9, {**HEALTHY, 'skipped': 3, 'skipped_in_a_row': 3})
  # A rollout makes several updates between two checks.
  with pytest.raises(errors.UserError, match='Step 10: 5 updates'):
    bell.check(10, {**HEALTHY, 'skipped': 5, 'skipped_in_a_row': 5})


def test_a_missing_metric_is_a_mistake():
  with pytest.raises(KeyError):
    alarms.Alarms().check(1, {k: HEALTHY[k] for k in HEALTHY if k != 'kl_k1'})


@pytest.mark.parametrize(
  'setting',
  [
    {'ratio_tolerance': -1.0},
    {'least_entropy': -1.0},
    {'most_truncated': 1.5},
    {'max_skipped_in_a_row': 0},
    {'repeat_after': 0},
  ],
)
def test_bad_settings_are_named(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigError, match=rf'Alarms\.{name} is'):
    alarms.Alarms(**setting)
