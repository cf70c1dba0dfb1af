import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.rl import setting_checks


@pytest.mark.parametrize('value', [0, 0.5, 1, np.float32(0.25)])
def test_numbers_within_bounds(value):
  setting_checks.check_number('X', value, 0, 1)


@pytest.mark.parametrize('value', [-1e-9, 1.1, float('nan'), None, '1', True])
def test_numbers_out_of_bounds(value):
  with pytest.raises(errors.ConfigError, match=r'X is .* from 0 to 1\.'):
    setting_checks.check_number('X', value, 0, 1)


def test_infinity_is_never_a_setting():
  setting_checks.check_number('X', 1e9, 0)
  with pytest.raises(errors.ConfigError, match=r'X is inf; .* at least 0'):
    setting_checks.check_number('X', float('inf'), 0)
  with pytest.raises(errors.ConfigError, match='X is inf'):
    setting_checks.check_positive('X', float('inf'))


@pytest.mark.parametrize('value', [0, -1.0, float('nan'), None, True])
def test_positive_numbers(value):
  setting_checks.check_positive('X', 1e-12)
  with pytest.raises(errors.ConfigError, match=r'X is .* above 0'):
    setting_checks.check_positive('X', value)


@pytest.mark.parametrize('value', [1, 2.0, 2.5, None, '3', True])
def test_whole_numbers(value):
  setting_checks.check_whole_number('X', np.int64(2), 2)
  with pytest.raises(errors.ConfigError, match=r'X is .* whole .* at least 2'):
    setting_checks.check_whole_number('X', value, 2)
