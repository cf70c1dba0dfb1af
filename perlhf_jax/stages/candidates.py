"""Files of candidates: prompts with right and wrong responses, to be ranked.

A line of a best-of-N file, as of RewardBench 2:

  {"prompt": "…", "responses": ["right", "wrong", …], "num_correct": 1,
   "subset": "Math"}

The correct responses come first. In the subset Ties a line also has an `id`,
`ref:1` for the prompt with one correct response and `tied:1` for the same
prompt with several. A line of a file of styles, as of RM-Bench:

  {"prompt": "…", "chosen": ["plain", …, "elaborate"],
   "rejected": ["plain", …, "elaborate"], "domain": "math"}
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import reprlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.objectives import best_of
from perlhf_jax.objectives import metrics
from perlhf_jax.objectives import style_matrix
from perlhf_jax.stages import line_files

_TIES = 'ties'
_REFERENCE, _TIED = 'ref', 'tied'
_LAYOUTS = (
  'a line of candidates has "prompt", "responses" (correct ones first), '
  '"num_correct" and "subset"; or "prompt", "chosen", "rejected" (lists of the '
  'same styles) and "domain"'
)


@runtime_checkable
class Candidates(Protocol):
  """The lines of a file of candidates.

  Attributes:
    path: the file.
    rows: its lines.
    responses: the responses of each line.
  """

  path: str
  rows: Sequence[Mapping[str, Any]]
  responses: Sequence[Sequence[str]]

  def measure(self, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns metrics of the scores of each line's responses."""


def read(path: str, max_lines: int | None = None) -> Candidates:
  """Reads and checks a file of candidates.

  Args:
    path: a .jsonl file, local or `gs://`.
    max_lines: how many lines to use, from the first on; None for all.

  Raises:
    DataError: a line is bad; the message names file and line.
  """
  rows = line_files.read(path, ('prompt',))[:max_lines]
  first = rows[0]
  make = BestOf if 'responses' in first else Styles
  if make is Styles and not {'chosen', 'rejected'} & first.keys():
    raise errors.DataError(f'{path}:1 has no candidates: {_LAYOUTS}.')
  return make(path, rows)


@dataclasses.dataclass(frozen=True)
class BestOf:
  """Lines with `responses`; see the top of this file."""

  path: str
  rows: Sequence[Mapping[str, Any]]

  def __post_init__(self):
    for where, row in _numbered(self.path, self.rows):
      _check_texts(row, 'responses', where)
      _check_label(row, 'subset', where)
      _check_num_correct(row, where)
    self._tied_prompts()

  @property
  def responses(self) -> list[Sequence[str]]:
    """The responses of each line, the correct ones first."""
    return [row['responses'] for row in self.rows]

  def measure(self, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns metrics of the scores of each line's responses.

    Args:
      scores: float64 `[responses]` of each line.

    Returns:
      `score`, the mean over subsets, each with the same weight, with its
      `standard_error`; and `subsets`. The score of a subset is the mean of
      `best_of.credit`; `ties` counts lines where correct and incorrect
      responses share the highest score. See `best_of.ties_score` for Ties.
    """
    subsets = {}
    for name, numbers in _groups(row['subset'] for row in self.rows).items():
      if name.lower() == _TIES:
        measured = self._measure_ties(scores)
      else:
        credits = [self._of_line(best_of.credit, scores, i) for i in numbers]
        tied = [self._of_line(best_of.is_tied, scores, i) for i in numbers]
        measured = {**_mean(credits), 'ties': sum(tied)}
      subsets[name] = {**measured, 'lines': len(numbers)}
    return {**_average(subsets), 'subsets': subsets}

  def _of_line(self, function, scores, index):
    return function(scores[index], self.rows[index]['num_correct'])

  def _measure_ties(self, scores) -> dict[str, float]:
    prompts = self._tied_prompts()
    return best_of.ties_score(
      *(
        [self._of_line(best_of.margins, scores, i) for i in numbers]
        for numbers in zip(*prompts, strict=True)
      )
    )

  def _tied_prompts(self) -> list[tuple[int, int]]:
    """Returns the lines (reference, tied) of each prompt of Ties.

    Raises:
      DataError: an `id` is bad, or is there twice, or a line has no partner.
    """
    lines: dict[str, dict[str, int]] = {_REFERENCE: {}, _TIED: {}}
    for index, (where, row) in enumerate(_numbered(self.path, self.rows)):
      if row['subset'].lower() != _TIES:
        continue
      role, _, name = str(row.get('id')).partition(':')
      if role not in lines or not name:
        raise errors.DataError(
          f'{where} is of the subset Ties and has the id '
          f'{reprlib.repr(row.get("id"))}; give "{_REFERENCE}:NAME" for the '
          f'prompt with one correct response, or "{_TIED}:NAME".'
        )
      if name in lines[role]:
        raise errors.DataError(
          f'{where} has the id {role}:{name}, as line '
          f'{lines[role][name] + 1} has; give each line its own.'
        )
      if role == _REFERENCE and row['num_correct'] != 1:
        raise errors.DataError(
          f'{where} has the id {role}:{name} and num_correct '
          f'{row["num_correct"]}; a reference has one correct response.'
        )
      lines[role][name] = index
    for role, other in ((_REFERENCE, _TIED), (_TIED, _REFERENCE)):
      for name, index in lines[role].items():
        if name not in lines[other]:
          raise errors.DataError(
            f'{self.path}:{index + 1} has the id {role}:{name}, and no line '
            f'has {other}:{name}; Ties compares the two.'
          )
    return [
      (index, lines[_TIED][name]) for name, index in lines[_REFERENCE].items()
    ]


@dataclasses.dataclass(frozen=True)
class Styles:
  """Lines with `chosen` and `rejected`; see the top of this file."""

  path: str
  rows: Sequence[Mapping[str, Any]]

  def __post_init__(self):
    num_styles = None
    for where, row in _numbered(self.path, self.rows):
      for name in ('chosen', 'rejected'):
        _check_texts(row, name, where)
        num_styles = num_styles or len(row[name])
        if len(row[name]) != num_styles or num_styles < 2:
          raise errors.DataError(
            f'{where}: {name!r} has {len(row[name])} response(s); every list '
            'of the file needs the same number, one per style, and at least 2.'
          )
      _check_label(row, 'domain', where)

  @property
  def responses(self) -> list[list[str]]:
    """The responses of each line, the correct ones first."""
    return [[*row['chosen'], *row['rejected']] for row in self.rows]

  def measure(self, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns metrics of the scores of each line's responses.

    Args:
      scores: float64 `[responses]` of each line.

    Returns:
      The means over domains of `hard`, `normal`, `easy` and `score`; and
      `domains` with `style_matrix.accuracies` of each. As in RM-Bench, a domain
      is the text before the first hyphen: `safety` of `safety-refuse`.
    """
    chosen, rejected = np.split(np.stack(scores), 2, axis=1)
    domains = {
      name: {
        **style_matrix.accuracies(chosen[numbers], rejected[numbers]),
        'lines': len(numbers),
      }
      for name, numbers in _groups(
        row['domain'].partition('-')[0] for row in self.rows
      ).items()
    }
    return {**style_matrix.average(domains), 'domains': domains}


def _numbered(path, rows):
  """Yields the place of each row, for messages, and the row."""
  for number, row in enumerate(rows, start=1):
    yield f'{path}:{number}', row


def _groups(labels: Iterable[str]) -> dict[str, list[int]]:
  """Returns the indices of each label, in order."""
  groups: dict[str, list[int]] = {}
  for index, label in enumerate(labels):
    groups.setdefault(label, []).append(index)
  return groups


def _mean(values: Sequence[float]) -> dict[str, float]:
  array = np.array(values, np.float64)
  return {
    'score': metrics.mean(array),
    'standard_error': metrics.standard_error(array),
  }


def _average(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Averages groups with the same weight."""
  scores, deviations = (
    [group[name] for group in groups.values()]
    for name in ('score', 'standard_error')
  )
  return {
    'score': math.fsum(scores) / len(scores),
    'standard_error': math.hypot(*deviations) / len(deviations),
  }


def _check_texts(row: Mapping[str, Any], name: str, where: str) -> None:
  """Raises a DataError if a field is no list of texts, or has an empty one."""
  texts = row.get(name)
  if not isinstance(texts, list) or not texts:
    raise errors.DataError(
      f'{where}: {name!r} is {reprlib.repr(texts)}, not a list of responses: '
      f'{_LAYOUTS}.'
    )
  for index, text in enumerate(texts):
    if not isinstance(text, str) or not text:
      raise errors.DataError(
        f'{where}: {name}[{index}] is {reprlib.repr(text)}; give the text of a '
        'response, or leave the response out.'
      )


def _check_label(row: Mapping[str, Any], name: str, where: str) -> None:
  """Raises a DataError if a field is no text, or is empty."""
  label = row.get(name)
  if not isinstance(label, str) or not label:
    raise errors.DataError(
      f'{where}: {name!r} is {reprlib.repr(label)}; give the name of the '
      f'{name} in quotes.'
    )


def _check_num_correct(row: Mapping[str, Any], where: str) -> None:
  """Raises a DataError unless there are correct and incorrect responses."""
  num_correct, num_responses = row.get('num_correct'), len(row['responses'])
  if not isinstance(num_correct, int) or isinstance(num_correct, bool):
    raise errors.DataError(
      f'{where}: "num_correct" is {reprlib.repr(num_correct)}; give the number '
      'of correct responses, which come first in "responses".'
    )
  if num_correct < 1:
    raise errors.DataError(
      f'{where}: "num_correct" is {num_correct}: the line has no correct '
      'response to find. Add one as the first of "responses", or remove the '
      'line.'
    )
  if num_correct >= num_responses:
    raise errors.DataError(
      f'{where}: "num_correct" is {num_correct} of {num_responses} '
      'response(s); at least one response must be incorrect, or every model is '
      'right.'
    )
