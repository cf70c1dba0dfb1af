r"""BOLT English SMS/Chat: conversations to summarise, prompts only.

Source: https://catalog.ldc.upenn.edu/LDC2018T19 (Chen et al. 2018), under
the licence of the Linguistic Data Consortium: the corpus must be bought or
comes with a membership, and may not be redistributed.

Files, under PERLHF_DATA_DIR in `bolt/` or `LDC2018T19/`: the folder `data/`
of the corpus with its `*.xml` files, or these files themselves, or one level
of folders that hold them.

Task: bolt_prompts, for a policy whose reward model was trained on tldr_rm, as
in the paper. Prompts have the form of `tasks.tldr`, without the lines for
subreddit and title, which a conversation does not have.
  POST: P1: are you up for lunch
  P2: sure, at noon?
  TL;DR:

Split: the authors drew 11,932, 1,575 and 500 conversations and did not
publish which. Here a hash of the conversation's id makes splits in these
proportions: 85.2% train, 11.2% validation, 3.6% test.

The format follows the documentation of the corpus (README of April 2018, in
a copy found in a public repository): one conversation per file,
  <conversation id="SMS_ENG_20120304.0001" medium="SMS" donated="true">
    <messages>
      <message id="m0000" time="2012-03-04 10:11:12 UTC" participant="1234">
        <body>are you up for lunch</body>
Some messages have a doubly escaped `&`, which is undone here. Messages that
consist of mark-up only, such as `<media omitted>`, are left out. We had no
access to the corpus or its DTD, so this reader was only tested with files that
we wrote. It also reads several conversations below one root.
"""

from collections.abc import Iterator, Mapping
import re
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree

from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import preprocessors
from perlhf_jax.data import sources
from perlhf_jax.data import whole_files
from tasks import tldr

# The authors' numbers of conversations, as shares.
_SPLITS = {'train': 11_932, 'validation': 1_575, 'test': 500}

_TWICE_ESCAPED = re.compile('&(amp|lt|gt|quot|apos);')
_ESCAPED = {'amp': '&', 'lt': '<', 'gt': '>', 'quot': '"', 'apos': "'"}
_ONLY_MARKUP = re.compile('<[^<>]+>')


def read(path: str) -> Iterator[json_rows.Row]:
  """Yields the conversations of an XML file.

  A record has the attributes of the conversation (`id`, `medium`, `donated`)
  and `messages`, a list of dicts with the attributes of each message (`id`,
  `time`, `participant`) and its `body`. A file that is not well-formed yields a
  row with a problem.

  Args:
    path: local or `gs://`.

  Raises:
    DataError: the file cannot be read.
  """
  text = whole_files.read(path)
  try:
    root = defusedxml.ElementTree.fromstring(text)
  except ElementTree.ParseError as error:
    line, _ = error.position
    yield json_rows.Row(f'{path}:{line}', {}, f'not well-formed XML ({error})')
    return
  # An unknown encoding, or entities, which can expand to gigabytes.
  except (ValueError, LookupError) as error:
    yield json_rows.Row(f'{path}:1', {}, f'not readable as XML ({error})')
    return
  conversations = list(root.iter('conversation'))
  for index, conversation in enumerate(conversations):
    yield json_rows.Row(f'{path}#{index}', _record(conversation))
  if not conversations:
    problem = f'the root is <{root.tag}> and there is no <conversation>'
    yield json_rows.Row(f'{path}:1', {}, problem)


def to_prompt_and_response(record: Mapping[str, Any]) -> tuple[str, str]:
  """Returns the prompt of a record of `read`, and an empty response.

  Participants are called P1, P2, ... in the order in which they speak.

  Raises:
    ValueError: no message has any text.
  """
  turns = _turns(record)
  if not turns:
    raise ValueError('no message of the conversation has any text')
  return tldr.render_prompt(preprocessors.render_dialogue(turns)), ''


def parse_prompt(record: Mapping[str, Any]) -> dict[str, str] | None:
  """Returns the prompt, and the conversation's id, which decides its split.

  Returns:
    The features; None if all messages are mark-up or empty.
  """
  if record['messages'] and not _turns(record):
    return None
  prompt, _ = to_prompt_and_response(record)
  return {'inputs': prompt, sources.SPLIT_KEY: record['id']}


def _turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns speaker and text of the messages that have text."""
  speakers: dict[str, str] = {}
  turns = []
  for message in record['messages']:
    body = _TWICE_ESCAPED.sub(_unescape, message['body']).strip()
    participant = message['participant']
    if body and not _ONLY_MARKUP.fullmatch(body):
      speaker = speakers.setdefault(participant, f'P{len(speakers) + 1}')
      turns.append((speaker, body))
  return turns


def _record(conversation: ElementTree.Element) -> dict[str, Any]:
  messages = []
  for message in conversation.iter('message'):
    body = message.find('body')
    text = {} if body is None else {'body': ''.join(body.itertext())}
    messages.append(dict(message.attrib) | text)
  return dict(conversation.attrib) | {'messages': messages}


def _unescape(match: re.Match) -> str:
  return _ESCAPED[match[1]]


preference_tasks.add_preference_task(
  'bolt_prompts',
  'prompts',
  parse_prompt,
  (
    (
      sources.FileGroup(
        tuple(
          f'{place}/{folder}*.xml'
          for place in ('bolt', 'LDC2018T19')
          for folder in ('data/', '', 'data/*/', '*/')
        ),
        _SPLITS,
      ),
    ),
  ),
  info=sources.DatasetInfo(
    description='BOLT English SMS/Chat conversations',
    homepage='https://catalog.ldc.upenn.edu/LDC2018T19',
    licence='LDC user agreement, not free',
    files='bolt/data/*.xml or LDC2018T19/data/*.xml',
  ),
  read=read,
)
