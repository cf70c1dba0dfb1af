import doctest

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import feature_converters as fc
from perlhf_jax.data import kinds

TOKENS = st.lists(st.integers(2, 90), max_size=12).map(
  lambda ids: np.array([*ids, fc.EOS_ID], np.int32)
)
LENGTH = st.integers(2, 9)
POLICY = st.sampled_from(fc.TRUNCATE_PROMPT)


def features(kind):
  """A strategy for lists of examples of a kind."""
  fields = {
    name: TOKENS if name in kind.texts else st.sampled_from([0.0, 1.0])
    for name in kind.required
  }
  return st.lists(st.fixed_dictionaries(fields), max_size=4)


def convert(converter, examples, batch_size=None):
  return converter([converter.cut(each) for each in examples], batch_size)


def pad(tokens, length):
  """Slow reference of padding: lists, no numpy."""
  tokens = [int(token) for token in tokens]
  missing = length - len(tokens)
  return tokens + [0] * missing, [True] * len(tokens) + [False] * missing


def cut_prompt(tokens, length, policy):
  tokens = list(tokens)
  if len(tokens) <= length:
    return tokens
  if policy == 'keep_end':
    return tokens[len(tokens) - length :]
  return [*tokens[: length - 1], fc.EOS_ID]


def cut_response(tokens, length):
  tokens = list(tokens)
  return tokens if len(tokens) <= length else [*tokens[: length - 1], fc.EOS_ID]


def test_worked_examples_of_the_docstrings():
  result = doctest.testmod(fc)
  assert result.attempted >= 12
  assert result.failed == 0


@pytest.mark.parametrize('kind', kinds.KINDS.values(), ids=list(kinds.KINDS))
@hypothesis.given(data=st.data(), prompt=LENGTH, response=LENGTH, policy=POLICY)
def test_batches_match_their_feature_table(
  kind, data, prompt, response, policy
):
  examples = data.draw(features(kind))
  batch = convert(fc.Converter(kind, prompt, response, policy), examples, 5)
  assert set(batch) == set(kind.model_features)
  for name, spec in kind.model_features.items():
    assert batch[name].dtype == spec.dtype, name
    assert batch[name].ndim == spec.rank, name
    assert batch[name].shape[0] == 5, name
  assert batch['example_mask'].tolist() == [
    row < len(examples) for row in range(5)
  ]


@hypothesis.given(
  examples=features(kinds.SFT), prompt=LENGTH, response=LENGTH, policy=POLICY
)
def test_sft_against_lists(examples, prompt, response, policy):
  batch = convert(
    fc.Converter(kinds.SFT, prompt, response, policy), examples, 5
  )
  for row in range(5):
    example = examples[row] if row < len(examples) else None
    inputs = cut_prompt(example['inputs'], prompt, policy) if example else []
    targets = list(example['targets'])[:response] if example else []
    target_row, mask = pad(targets, response)
    assert batch['encoder_input_tokens'][row].tolist() == pad(inputs, prompt)[0]
    assert batch['decoder_target_tokens'][row].tolist() == target_row
    shifted = [0, *target_row[:-1]]
    assert batch['decoder_input_tokens'][row].tolist() == shifted
    assert batch['decoder_loss_weights'][row].tolist() == [
      1.0 if real else 0.0 for real in mask
    ]


@hypothesis.given(
  examples=features(kinds.PAIRWISE),
  prompt=LENGTH,
  response=LENGTH,
  policy=POLICY,
)
def test_pairwise_against_lists(examples, prompt, response, policy):
  batch = convert(
    fc.Converter(kinds.PAIRWISE, prompt, response, policy), examples
  )
  assert batch['margins'].tolist() == [0.0] * len(examples)
  for row, example in enumerate(examples):
    for name, batch_name, cut in (
      ('inputs', 'prompt', cut_prompt(example['inputs'], prompt, policy)),
      ('chosen', 'chosen', cut_response(example['chosen'], response)),
      ('rejected', 'rejected', cut_response(example['rejected'], response)),
    ):
      length = prompt if name == 'inputs' else response
      tokens, mask = pad(cut, length)
      assert batch[f'{batch_name}_tokens'][row].tolist() == tokens
      assert batch[f'{batch_name}_mask'][row].tolist() == mask


@hypothesis.given(
  examples=features(kinds.POINTWISE), prompt=LENGTH, response=LENGTH
)
def test_pointwise_rows_do_not_depend_on_their_batch(
  examples, prompt, response
):
  converter = fc.Converter(kinds.POINTWISE, prompt, response)
  together = convert(converter, examples, 5)
  assert together['labels'].tolist()[: len(examples)] == [
    example['label'] for example in examples
  ]
  for row, example in enumerate(examples):
    alone = convert(converter, [example])
    for name, array in alone.items():
      np.testing.assert_array_equal(array[0], together[name][row])


@pytest.mark.parametrize('kind', kinds.KINDS.values(), ids=list(kinds.KINDS))
def test_a_batch_does_not_cut(kind):
  long = np.array([5, 6, 7, fc.EOS_ID])
  example = {n: long if n in kind.texts else 1.0 for n in kind.required}
  converter = fc.Converter(kind, 3, 3)
  with pytest.raises(ValueError, match='broadcast'):
    converter([example])
  cut = converter.cut(example)
  assert {len(cut[name]) for name in kind.texts} == {3}
  assert len(converter([cut])['example_mask']) == 1


@hypothesis.given(tokens=TOKENS, length=LENGTH, policy=POLICY)
def test_cut_prompts_and_responses_end_with_eos(tokens, length, policy):
  for cut in (
    fc.truncate_prompt(tokens, length, policy),
    fc.truncate_response(tokens, length),
  ):
    assert len(cut) <= length
    assert cut[-1] == fc.EOS_ID


def test_a_target_that_is_cut_does_not_learn_to_stop():
  target = np.array([5, 6, 7, fc.EOS_ID])
  assert fc.truncate_target(target, 3).tolist() == [5, 6, 7]
  assert fc.truncate_target(target, 4).tolist() == [5, 6, 7, 1]


def test_margins_reach_the_batch():
  tokens = np.array([4, 1])
  example = {'inputs': tokens, 'chosen': tokens, 'rejected': tokens}
  converter = fc.Converter(kinds.PAIRWISE, 2, 2)
  batch = converter([example | {'margin': 0.5}, example])
  assert batch['margins'].tolist() == [0.5, 0.0]


def test_more_examples_than_rows_is_a_bug_of_the_caller():
  example = {'inputs': np.array([4, 1])}
  with pytest.raises(ValueError, match='2 examples in a batch of 1'):
    fc.Converter(kinds.PROMPTS, 4)([example, example], batch_size=1)


def test_unknown_truncation_is_named():
  with pytest.raises(errors.ConfigError, match=r"'middle'.*keep_end"):
    fc.Converter(kinds.PROMPTS, 4, truncate_prompt='middle')
  with pytest.raises(errors.ConfigError, match=r"'middle'.*keep_end"):
    fc.truncate_prompt(np.arange(9), 4, 'middle')


def test_tokenize_appends_eos():
  class Letters:
    def encode(self, s):
      return [ord(letter) for letter in s]

  assert fc.tokenize(Letters(), 'ab').tolist() == [97, 98, 1]
  assert fc.tokenize(Letters(), '').tolist() == [1]
  assert fc.tokenize(Letters(), 'a').dtype == np.int32


def test_strip_eos():
  assert fc.strip_eos(np.array([4, 1])).tolist() == [4]
  assert fc.strip_eos(np.array([4])).tolist() == [4]
  assert fc.strip_eos(np.array([], np.int32)).tolist() == []
