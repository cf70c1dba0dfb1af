"""Finds the commands that our documents print, as a reader would.

A document becomes a list of pieces, in order: shell commands, and files that it
tells its reader to write.
"""

from collections.abc import Iterator
import pathlib
import re
from typing import NamedTuple

from perlhf_jax.cli import commands
from perlhf_jax.cli import help_pages

# Fenced blocks that are shown and not typed: outputs, diagrams, an image's
# recipe, and what Sphinx puts in their place.
_SHOWN = ('', 'dockerfile', '{include}', '{toctree}')
_FENCE = re.compile(
  r'^```([\w{}]*)(?: \S+)?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r'`((?:\w+=\S+\s)?(?:perlhf|launch/\w+\.sh)\s[^`]*)`')
# A file's name in the first line of a block: `# my_tasks.py, anywhere ...`.
_FILE = re.compile(r'# ([\w/]+\.(?:py|gin))\b')
# How a command begins in the comment at the top of a file.
_IN_HEAD = re.compile(
  r'(?:[A-Z_]+=\S+ )*(?:perlhf|launch/\w+\.sh|docker)(?: |$)'
)
_COMMENT = re.compile(r'#? ?')
# `perlhf train_reward ...`: what `perlhf train_reward --help` prints.
_SHORTENED = re.compile(r'\bperlhf (\w+) \.\.\.')


class Shell(NamedTuple):
  """Lines for a shell.

  Attributes:
    place: the document and the line, for messages.
    text: what is printed there.
  """

  place: str
  text: str

  @property
  def script(self) -> str:
    """The text, with what `...` stands for."""
    return _SHORTENED.sub(_completed, self.text)

  @property
  def typed(self) -> list[str]:
    """Beginnings of the lines that call perlhf or a launcher."""
    lines = self.text.replace('\\\n', ' ').splitlines()
    return [line for line in lines if _calls(line)]


class File(NamedTuple):
  """A file for the reader to write; `name` is relative to the folder."""

  place: str
  name: str
  text: str


Piece = Shell | File


def of_markdown(path: pathlib.Path, name: str) -> list[Piece]:
  """The pieces of a page.

  Raises:
    ValueError: a block holds something else, such as an unnamed file.
  """
  text = path.read_text('utf-8')
  pieces: list[tuple[int, Piece]] = []
  prose = text
  for match in _FENCE.finditer(text):
    place = f'{name}, line {_line(text, match.start())}'
    piece = _of_block(place, *match.groups())
    if piece:
      pieces.append((match.start(), piece))
    blank = re.sub(r'[^\n]', ' ', match[0])
    prose = prose[: match.start()] + blank + prose[match.end() :]
  for match in _INLINE.finditer(prose):
    command = ' '.join(match[1].split())
    if ' --' in command and not _is_pattern(command):
      place = f'{name}, line {_line(text, match.start())}'
      pieces.append((match.start(), Shell(place, command)))
  return [piece for _, piece in sorted(pieces, key=lambda pair: pair[0])]


def of_head(path: pathlib.Path, name: str) -> list[Shell]:
  """The commands in the comment at the top of a gin file or a script."""
  found = []
  lines = list(_head(path))
  for number, line in enumerate(lines):
    if not _IN_HEAD.match(line.strip()):
      continue
    if number and lines[number - 1].endswith('\\'):
      continue  # A launcher's command goes on with perlhf.
    end = number
    while lines[end].endswith('\\'):
      end += 1
    text = '\n'.join(lines[number : end + 1])
    # Explanations stand behind a gap; what may be left out, in brackets.
    text = re.sub(r'(?<=\S)   +\S.*$|\s\[[^\]\n]*\]', '', text)
    found.append(Shell(f'{name}, line {number + 1}', text))
  return found


def of_help_page(command: str) -> list[Shell]:
  """The example of a page of `perlhf COMMAND --help`."""
  page = help_pages.page(command, commands.COMMANDS[command])
  _, _, example = page.partition('\nExample:\n')
  return [Shell(f'perlhf {command} --help', example)]


def count_in_head(path: pathlib.Path) -> int:
  """Counts what calls perlhf or a launcher at the top of a file, roughly."""
  text = '\n'.join(_head(path))
  return len(re.findall(r'^ {2,}(?:\w+=\S+ )*(?:perlhf|launch/)', text, re.M))


def _of_block(place: str, language: str, text: str) -> Piece | None:
  if language == 'sh':
    return Shell(place, text)
  if language in ('python', 'gin'):
    name = _FILE.match(text)
    if not name:
      raise ValueError(f'{place}: the first line names no file')
    return File(place, name[1], text)
  if language not in _SHOWN or re.search(r'^\$? ?perlhf \w', text, re.M):
    raise ValueError(f'{place}: commands belong into a block of sh')
  return None


def _head(path: pathlib.Path) -> Iterator[str]:
  for line in path.read_text('utf-8').splitlines():
    if not line.startswith('#'):
      return
    yield _COMMENT.sub('', line, count=1)


def _calls(line: str) -> bool:
  words = r'^\s*(?:\w+=\S+ )*(?:\./|\.venv/bin/)?(?:perlhf|launch/\w+\.sh)\b'
  return bool(re.match(words, line))


def _is_pattern(command: str) -> bool:
  """Whether it stands for many commands: `perlhf COMMAND --help`."""
  return bool(re.search(r'\b[A-Z]{3,} ', command))


def _completed(match: re.Match[str]) -> str:
  """Gives the page's example, from random weights: hosts have no others."""
  name = match[1]
  example = commands.COMMANDS[name].example.removeprefix(f'perlhf {name} ')
  example = example.replace('gin/lora/attention.gin', 'gin/lora/none.gin')
  start = re.compile(r'(?<=--gin\.INITIAL_CHECKPOINT_PATH=)\S+')
  return f'perlhf {name} {start.sub("None", example)}'


def _line(text: str, position: int) -> int:
  return text.count('\n', 0, position) + 1
