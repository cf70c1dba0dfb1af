"""Draws test pictures, questions and answers into OUTPUT_DIR/montage.png.

  python launch/demo_vqa_montage.py OUTPUT_DIR

OUTPUT_DIR is the folder that launch/demo_vqa.sh filled. Each policy's eval.json
holds the answers to the first questions of the test split.
"""

from collections.abc import Sequence
import dataclasses
import io
import itertools
import json
import pathlib
import sys
from typing import Any

import matplotlib

matplotlib.use('Agg')
from matplotlib import image as mpl_image
from matplotlib import pyplot as plt
import numpy as np

from perlhf_jax.core import errors
from tasks import demo_vqa

POLICIES = {'sft': 'SFT', 'policy_lora': 'LoRA policy'}
MAX_CELLS = 12
RIGHT_COLOR, WRONG_COLOR = '#15803d', '#c81e1e'

_COLUMNS = 4
_CELL_INCHES = (2.9, 3.7)
_HEAD_INCHES = 0.8
_GAP = 0.1
_DPI = 130
_INK, _FAINT, _PAPER, _CARD = '#1f2933', '#6b7785', '#eef1f4', '#ffffff'
_SHOWN_CHARACTERS = 14


@dataclasses.dataclass(frozen=True)
class Cell:
  """One picture with a question.

  Attributes:
    image: float RGB or RGBA, `[height, width, channels]`.
    question: text.
    right: the right answer.
    answers: (response, score from 0 to 100) for each of `POLICIES`.
  """

  image: np.ndarray
  question: str
  right: str
  answers: Sequence[tuple[str, float]]


def read_evaluations(output: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the eval.json of each of `POLICIES`.

  Raises:
    DataError: a file is missing or holds no judged samples.
  """
  evaluations = []
  for name in POLICIES:
    path = output / name / 'eval.json'
    if not path.is_file():
      raise errors.DataError(
        f'{path} is missing. launch/demo_vqa.sh writes it: run that to its'
        ' end first, with the same folder.'
      )
    evaluation = json.loads(path.read_text())
    samples = evaluation.get('samples')
    if not samples or any('judge_score' not in x for x in samples):
      raise errors.DataError(
        f'{path} has no samples with a judge_score. Evaluate {path.parent}'
        ' with --gin_file=gin/demo_vqa/gold.gin.'
      )
    evaluations.append(evaluation)
  return evaluations


def make_cells(evaluations: Sequence[dict[str, Any]]) -> list[Cell]:
  """Combines the answers of all policies with their pictures.

  Raises:
    DataError: the samples do not answer the first test questions.
  """
  cells = []
  samples = zip(*(x['samples'] for x in evaluations), strict=False)
  rows = itertools.islice(demo_vqa.make_prompts('test'), MAX_CELLS)
  for number, (row, answers) in enumerate(zip(rows, samples, strict=False)):
    question, right = demo_vqa.to_prompt_and_response(row)
    for policy, answer in zip(POLICIES, answers, strict=True):
      references = answer.get('references', row['references'])
      if (answer['prompt'], references) != (question, row['references']):
        raise errors.DataError(
          f'Sample {number} in {policy}/eval.json asks {answer["prompt"]!r},'
          f' and question {number} of demo_vqa_prompts/test is {question!r}.'
          ' Evaluate again, on the split test of that task, with one response'
          ' to each prompt.'
        )
    (encoded,) = row['images']
    image = mpl_image.imread(io.BytesIO(encoded), format='png')
    pairs = [(x['response'], x['judge_score']) for x in answers]
    cells.append(Cell(image, question, right, pairs))
  return cells


def draw(cells: Sequence[Cell], title: str, path: pathlib.Path) -> None:
  """Draws cells in rows of four."""
  rows = -(-len(cells) // _COLUMNS)
  width, height = _CELL_INCHES
  size = (width * _COLUMNS, height * rows + _HEAD_INCHES)
  figure = plt.figure(figsize=size, facecolor=_PAPER)
  middle = 1 - _HEAD_INCHES / 2 / size[1]
  figure.text(0.5, middle, title, fontsize=15, color=_INK, ha='center')
  for number, cell in enumerate(cells):
    row, column = divmod(number, _COLUMNS)
    corner = np.array((column * width, (rows - 1 - row) * height))
    box = (corner + _GAP) / size, (np.array(_CELL_INCHES) - 2 * _GAP) / size
    card = figure.add_axes(tuple(np.concatenate(box)))
    _draw_card(card, cell)
  figure.savefig(path, dpi=_DPI, facecolor=_PAPER)
  plt.close(figure)


def _draw_card(card: plt.Axes, cell: Cell) -> None:
  card.set(xticks=[], yticks=[], facecolor=_CARD)
  card.spines[:].set_color('#d5dbe1')
  picture = card.inset_axes((0.12, 0.4, 0.76, 0.57))
  picture.imshow(cell.image, interpolation='nearest')
  picture.set(xticks=[], yticks=[])
  picture.spines[:].set_visible(False)
  _write(card, 0.5, 0.335, cell.question, _INK, ha='center', weight='bold')
  _write(card, 0.06, 0.235, 'right answer', _FAINT)
  _write(card, 0.43, 0.235, cell.right, _INK)
  lines = zip(POLICIES.values(), cell.answers, (0.145, 0.055), strict=True)
  for name, (response, score), y in lines:
    color = RIGHT_COLOR if score == 100 else WRONG_COLOR
    _write(card, 0.06, y, name, _FAINT)
    _write(card, 0.43, y, _shown(response), color, weight='bold')
    _write(card, 0.96, y, f'{score:.0f}', color, ha='right', weight='bold')


def _write(card: plt.Axes, x: float, y: float, text: str, color: str, **kwargs):
  kwargs |= {'color': color, 'fontsize': 10.5, 'va': 'center'}
  # A dollar sign in an answer does not start a formula.
  card.text(x, y, text, parse_math=False, **kwargs)


def _shown(response: str) -> str:
  """Returns a response as one line of limited length."""
  text = ascii(response.strip())[1:-1] or '(nothing)'
  if len(text) > _SHOWN_CHARACTERS:
    text = text[: _SHOWN_CHARACTERS - 3] + '...'
  return text


def make_title(evaluations: Sequence[dict[str, Any]]) -> str:
  """Returns a title with the mean score of each policy, if recorded."""
  means = [
    f'{name} {evaluation["judge_score"]:.1f}'
    for name, evaluation in zip(POLICIES.values(), evaluations, strict=True)
    if 'judge_score' in evaluation
  ]
  return f'Right answers to all test questions, in %:  {",  ".join(means)}'


def main() -> None:
  """Reads the results, draws the picture, and prints its path."""
  if len(sys.argv) != 2:
    sys.exit('usage: python launch/demo_vqa_montage.py OUTPUT_DIR')
  output = pathlib.Path(sys.argv[1])
  try:
    evaluations = read_evaluations(output)
    cells = make_cells(evaluations)
  except errors.UserError as error:
    sys.exit(f'error: {error}')
  path = output / 'montage.png'
  draw(cells, make_title(evaluations), path)
  print(f'Pictures, questions and answers: {path}')


if __name__ == '__main__':
  main()
