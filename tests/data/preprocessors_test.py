import pytest
import tensorflow as tf

from perlhf_jax.data import preprocessors

TURN = '\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:'


def test_split_at_the_last_answer():
  prompt, response = preprocessors.split_dialogue(TURN + ' because. ')
  assert prompt == TURN.strip()
  assert response == 'because.'


def test_other_markers():
  assert preprocessors.split_dialogue('Q: a A: b A: c', ' A:') == (
    'Q: a A: b A:',
    'c',
  )


def test_dialogue_without_an_answer_is_refused():
  with pytest.raises(ValueError, match='no turn that starts with'):
    preprocessors.split_dialogue('\n\nHuman: hi')


def test_pair_that_differs_in_the_last_answer():
  assert preprocessors.split_dialogue_pair(TURN + ' yes', TURN + ' yeti') == (
    TURN.strip(),
    'yes',
    'yeti',
  )


def test_pair_that_parts_earlier_keeps_what_it_shares():
  rest = ' so\n\nHuman: ok\n\nAssistant: fine'
  prompt, chosen, rejected = preprocessors.split_dialogue_pair(
    TURN + rest, TURN + ' silly'
  )
  assert prompt == TURN.strip()
  assert chosen == rest.strip()
  assert rejected == 'silly'


def test_pair_that_shares_nothing_is_refused():
  with pytest.raises(ValueError, match='share no prompt'):
    preprocessors.split_dialogue_pair(
      '\n\nHuman: a\n\nAssistant: x', '\n\nHuman: b\n\nAssistant: x'
    )


def test_render_dialogue():
  turns = [('user', ' two\n lines '), ('agent', 'ok')]
  assert preprocessors.render_dialogue(turns) == 'user: two lines\nagent: ok'
  assert preprocessors.render_dialogue(turns, 'user').endswith('ok\nuser:')
  assert preprocessors.render_dialogue([], 'agent') == 'agent:'


def test_from_python_serves_as_a_preprocessor():
  def split(example):
    prompt, chosen, rejected = preprocessors.split_dialogue_pair(
      example['good'], example['bad']
    )
    return {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}

  preprocess = preprocessors.from_python(
    split, ['inputs', 'chosen', 'rejected']
  )
  dataset = tf.data.Dataset.from_tensors(
    {'good': TURN + ' é', 'bad': TURN + ' no', 'origin': 'f:1', 'n': 3}
  )
  (row,) = preprocess(dataset).as_numpy_iterator()
  assert {name: value.decode() for name, value in row.items()} == {
    'inputs': TURN.strip(),
    'chosen': 'é',
    'rejected': 'no',
    'origin': 'f:1',
  }
  # SeqIO checks types and ranks of what comes out.
  spec = preprocess(dataset).element_spec
  assert all(entry == tf.TensorSpec([], tf.string) for entry in spec.values())


def test_from_python_keeps_what_a_source_says_of_a_row():
  kept = {'origin': b'f:1', 'problem': b'', 'position': [0, 7]}
  dataset = tf.data.Dataset.from_tensors({'text': 'a b', 'other': 'c'} | kept)
  preprocess = preprocessors.from_python(
    lambda example: {'inputs': example['text']}, ['inputs']
  )
  (row,) = preprocess(dataset).as_numpy_iterator()
  assert row.pop('position').tolist() == kept.pop('position')
  assert row == {'inputs': b'a b'} | kept
