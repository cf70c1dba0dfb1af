import re
import time

from hypothesis import given
from hypothesis import strategies as st
import pytest

from perlhf_jax.core import errors
from perlhf_jax.core import patterns

# Years for `re`.
_ENDLESS = '(.+?)' * 8 + r'\8[#!]'
NAMES = (
  'encoder/layers_0/attention/query',
  'decoder/layers_11/mlp/wi',
  'a',
  '',
)


@given(
  st.lists(
    st.sampled_from(
      [r'.*', 'layers', r'_\d+', '/', '(a|mlp|q)', '[a-z]+', r'\.', 'wi', '?']
    ),
    max_size=5,
  ).map(''.join)
)
def test_matches_are_those_of_re(pattern):
  try:
    wanted = [re.fullmatch(pattern, name) is not None for name in NAMES]
  except re.error:
    return
  assert [patterns.fullmatch(pattern, name) for name in NAMES] == wanted


def test_a_pattern_that_would_run_for_ever_is_stopped():
  start = time.monotonic()
  with pytest.raises(errors.ConfigError, match='takes more than 1 s'):
    patterns.fullmatch(_ENDLESS, 'encoder/layers_0/attention' * 3)
  assert time.monotonic() < start + 10


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('(q', 'is not a regular expression'),
    ('(' * 1900, 'is not a regular expression'),
    ('((a{1000}){1000}){1000}', 'counts repetitions'),
    ('a{,}', 'counts repetitions'),
    ('a' * 2001, '2,001 characters; at most 2,000'),
  ],
)
def test_others_are_refused(pattern, message):
  with pytest.raises(errors.ConfigError, match=message):
    patterns.fullmatch(pattern, 'a')
