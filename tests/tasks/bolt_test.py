from xml.sax import saxutils

import pytest

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import sources
from perlhf_jax.data import vocabularies
from tasks import bolt
from tasks import tldr


def conversation(name, *messages):
  """XML of a conversation; messages are (participant, body), raw XML."""
  inner = ''.join(
    f'<message id="m{i:04}" participant="{participant}"'
    f' time="2012-03-04 10:11:12 UTC">\n<body>{body}</body></message>\n'
    for i, (participant, body) in enumerate(messages)
  )
  return (
    f'<conversation id="{name}" medium="SMS" donated="true">\n'
    f'<messages>{inner}</messages></conversation>\n'
  )


def record(*bodies):
  messages = [
    {'id': f'm{i:04}', 'participant': speaker, 'body': body}
    for i, (speaker, body) in enumerate(bodies)
  ]
  return {'id': 'SMS_ENG_20120304.0001', 'messages': messages}


def load(split='train', **kwargs):
  config = input_pipeline.DatasetConfig(
    'bolt_prompts', {'inputs': 256}, split=split, **kwargs
  )
  return input_pipeline.load_examples(config, vocabularies.byte_vocabulary())


def write(path, *conversations, root=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = ''.join(conversations)
  path.write_text(f'<{root}>{text}</{root}>' if root else text)


def test_rendering():
  prompt, response = bolt.to_prompt_and_response(
    record(
      ('9', '<media omitted>'),
      ('7', 'soup &amp; bread\n at noon?'),
      ('9', '  '),
      ('9', 'yes <3'),
      ('7', 'see you'),
    )
  )
  # Who has said nothing is not counted.
  expected = 'P1: soup & bread at noon?\nP2: yes <3\nP1: see you'
  assert prompt == f'POST: {expected}\nTL;DR:'
  assert prompt == tldr.render_prompt(expected)
  assert response == ''


def test_reader_keeps_what_the_file_says(tmp_path):
  path = tmp_path / 'a.xml'
  body = saxutils.escape('é & <b>')
  path.write_text(
    '<?xml version="1.0" encoding="ISO-8859-1"?>\n'
    '<!DOCTYPE conversation SYSTEM "conversation0.2.1.dtd">\n'
    + conversation('SMS_1', ('7', body)),
    'latin-1',
  )
  (row,) = bolt.read(str(path))
  assert row.origin == f'{path}#0' and not row.problem
  assert row.record == {
    'id': 'SMS_1',
    'medium': 'SMS',
    'donated': 'true',
    'messages': [
      {
        'id': 'm0000',
        'participant': '7',
        'time': '2012-03-04 10:11:12 UTC',
        'body': 'é & <b>',
      }
    ],
  }


@pytest.mark.parametrize(
  'folder',
  ['bolt/data', 'bolt', 'bolt/data/sms', 'LDC2018T19/data', 'LDC2018T19/x'],
)
def test_conversations_are_split_in_the_shares_of_the_authors(data_dir, folder):
  # Two participants say the same everywhere: the id alone decides the split.
  both = ('7', 'hello'), ('9', 'hi')
  names = [f'SMS_ENG_20120304.{i:04}' for i in range(400)]
  one, other = names[:200], names[200:]
  for path, part in (('a.xml', one), ('b.xml', other)):
    found = [conversation(name, *both) for name in part]
    write(data_dir / folder / path, *found, root='conversations')
  sizes = {split: len(load(split)) for split in ('train', 'validation', 'test')}
  assert sum(sizes.values()) == 400
  assert 310 < sizes['train'] < 370
  assert 25 < sizes['validation'] < 65
  assert 4 < sizes['test'] < 30
  expected = sum(
    sources.split_by_hash(
      name, {'train': 11_932, 'validation': 1_575, 'test': 500}
    )
    == 'test'
    for name in names
  )
  assert sizes['test'] == expected


@pytest.mark.parametrize(
  ('text', 'where', 'problem'),
  [
    ('<conversation>\n<messages>\n', ':3', 'not well-formed XML'),
    ('', ':1', 'not well-formed XML'),
    (
      '<!DOCTYPE c [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><c>&b;</c>',
      ':1',
      'not readable as XML.*EntitiesForbidden',
    ),
    ('<conversation>\n&nbsp;</conversation>', ':2', 'undefined entity'),
    ('<?xml version="1.0" encoding="?"?><a/>', ':1', 'XML'),
    ('<a><b/></a>', ':1', 'the root is <a> and there is no <conversation>'),
    (conversation('x'), '#0', 'no message of the conversation has any text'),
    (
      '<conversation><message participant="7"><body>a</body></message>'
      '</conversation>',
      '#0',
      "'id' is missing",
    ),
    (
      '<conversation id="x"><message><body>a</body></message></conversation>',
      '#0',
      "'participant' is missing",
    ),
    (
      '<conversation id="x"><message participant="7"/></conversation>',
      '#0',
      "'body' is missing",
    ),
  ],
)
def test_bad_files_are_named_in_every_split(data_dir, text, where, problem):
  path = data_dir / 'bolt' / 'data' / 'bad.xml'
  write(path, text)
  for split in 'train', 'validation', 'test':
    with pytest.raises(errors.DataError, match=problem) as caught:
      load(split)
    assert f'{path}{where}: ' in str(caught.value)


def test_conversations_without_any_text_are_left_out(data_dir):
  markup = ('7', '&lt;media omitted&gt;'), ('9', ' ')
  found = [conversation(f'SMS_{i}', *markup) for i in range(20)]
  found += [conversation(f'CHT_{i}', ('7', 'hello'), *markup) for i in range(5)]
  write(data_dir / 'bolt/a.xml', *found, root='a')
  examples = load()
  assert 0 < len(examples) <= 5
  assert examples.texts(0)['inputs'] == 'POST: P1: hello\nTL;DR:'


def test_bad_files_can_be_skipped(data_dir):
  write(data_dir / 'bolt/bad.xml', '<conversation>')
  good = [conversation(f'SMS_{i}', ('7', 'hello')) for i in range(9)]
  write(data_dir / 'bolt/good.xml', *good, root='a')
  examples = load(skip_bad_rows=True)
  assert len(examples) > 4
  assert examples.num_skipped == 1


def test_unreadable_file_is_named(tmp_path):
  with pytest.raises(errors.DataError, match=r'nothing\.xml cannot be read'):
    list(bolt.read(str(tmp_path / 'nothing.xml')))


def test_missing_files_say_where_to_get_them(data_dir):
  with pytest.raises(errors.DataError, match=r'bolt/data.*LDC2018T19.*free'):
    load()
