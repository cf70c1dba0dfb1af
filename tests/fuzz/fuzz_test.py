"""Every parser, on a few hundred damaged files; `fuzz.py` goes on for hours."""

import signal

import hypothesis
from hypothesis import strategies as st
import mutations
import pytest
import targets

from perlhf_jax.core import errors

EXAMPLES = 100
NAMES = tuple(targets.targets())
# Of one file, in seconds: it is parsed in milliseconds, or something hangs.
_LONGEST = 20


@pytest.fixture(autouse=True)
def alarm():
  def stop(*_):
    raise AssertionError('the parser hangs')

  before = signal.signal(signal.SIGALRM, stop)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('name', NAMES)
def test_a_good_file_is_read(name):
  target = targets.targets()[name]
  for data in target.seeds:
    target.parse(data)


@pytest.mark.parametrize('name', NAMES)
def test_a_damaged_file_is_read_or_refused_with_a_message(name):
  target = targets.targets()[name]
  counts = {True: 0, False: 0}

  @hypothesis.settings(
    max_examples=EXAMPLES,
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
  )
  @hypothesis.given(
    rng=st.randoms(use_true_random=True), seed=st.sampled_from(target.seeds)
  )
  def parse(rng, seed):
    signal.alarm(_LONGEST)
    counts[targets.run(target, mutations.mutate(seed, rng))] += 1

  parse()
  assert sum(counts.values()) >= EXAMPLES


# Once a traceback each.
FOUND = [
  ('gin_binding', b'A = ' + b'[' * 2000 + b'1' + b']' * 2000),
  ('metadata', b'{"format_version": 3, "policy": 2, "vocabulary": 7}'),
  ('t5_config', b'{"model_type": "t5", "feed_forward_proj": ["relu"]}'),
  ('tokenizer_config', b'["ByT5Tokenizer"]'),
  ('adapter_config', b'{"peft_type": "LORA", "r": 1e999}'),
  ('orbax_index', b'{"tree_metadata": {"a": {"key_metadata": []}}}'),
]


@pytest.mark.parametrize(
  ('name', 'data'), FOUND, ids=lambda each: str(each)[:9]
)
def test_what_fuzzing_found_is_refused(name, data):
  assert targets.run(targets.targets()[name], data)


def test_what_is_no_clean_error_is_found():
  def parse(data):
    if len(data) > 3:
      raise errors.DataError('x cannot be read')
    raise KeyError(data)

  target = targets.Target((), parse)
  assert targets.run(target, b'1234')
  with pytest.raises(KeyError):
    targets.run(target, b'1')
