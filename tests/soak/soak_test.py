"""What the soak calls growth."""

import pytest
import soak


def _readings(growth, slower):
  """Readings at 20, 40, …, 2,000; memory and time grow in even parts."""
  seconds, readings = 0.0, []
  for i in range(100):
    share = max(i - 9, 0) / 90
    seconds += 0.2 * (1 + slower * share)
    mib = 500 * (1 + growth * share)
    readings.append({'step': 20 * (i + 1), 'seconds': seconds, 'mib': mib})
  return readings


@pytest.mark.parametrize(
  ('growth', 'slower', 'code'),
  [(0.0, 0.0, 0), (0.018, 0.0, 0), (0.03, 0.0, 1), (0.0, 0.2, 1), (-0.2, 0, 0)],
)
def test_growth_and_slowing_down_are_told(growth, slower, code, capsys):
  assert soak._report(_readings(growth, slower)) == code
  assert capsys.readouterr().out.startswith('steps 200 to 2,000: memory ')


def test_what_happens_before_everything_is_warm_does_not_count():
  readings = _readings(0.0, 0.0)
  for reading in readings[:9]:
    reading['mib'] = 10.0
  assert soak._report(readings) == 0
