import importlib.util
import io
import itertools
import json
import pathlib
import subprocess
import sys

from matplotlib import colors
from matplotlib import image as mpl_image
import numpy as np
import pytest

from perlhf_jax.core import errors
from tasks import demo_vqa

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'launch' / 'demo_vqa_montage.py'


@pytest.fixture(scope='module', name='montage')
def _montage():
  spec = importlib.util.spec_from_file_location('demo_vqa_montage', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up.
  spec.loader.exec_module(module)
  yield module
  del sys.modules[spec.name]


@pytest.fixture(scope='module', name='rows')
def _rows():
  return list(itertools.islice(demo_vqa.make_prompts('test'), 14))


def write(output, name, rows, answers, **extra):
  samples = [
    {
      'prompt': row['inputs'],
      'response': answer,
      'references': row['references'],
      'judge_score': demo_vqa.gold_score(row['references'], answer),
    }
    for row, answer in zip(rows, answers, strict=True)
  ]
  (output / name).mkdir(exist_ok=True)
  path = output / name / 'eval.json'
  path.write_text(json.dumps({'samples': samples, **extra}))


def right(rows):
  return [row['references'][0] for row in rows]


def wrong(rows):
  return ['$x$ no\n' * 9 for _ in rows]


def test_answers_are_put_beside_their_pictures(montage, rows, tmp_path):
  write(tmp_path, 'sft', rows, wrong(rows))
  write(tmp_path, 'policy_lora', rows, right(rows))
  cells = montage.make_cells(montage.read_evaluations(tmp_path))
  assert len(cells) == montage.MAX_CELLS == 12
  for row, cell in zip(rows, cells, strict=False):
    assert cell.question == row['inputs']
    assert cell.right == row['references'][0]
    (before, low), (after, high) = cell.answers
    assert (low, after, high) == (0, cell.right, 100)
    assert before == '$x$ no\n' * 9
    expected = mpl_image.imread(io.BytesIO(row['images'][0]), format='png')
    np.testing.assert_array_equal(cell.image, expected)
    assert cell.image.shape[:2] == (32, 32)


def share(pixels, color):
  near = np.abs(pixels[..., :3] - np.array(colors.to_rgb(color))) < 0.01
  return near.all(-1).mean()


def test_colors_say_what_is_right(montage, rows, tmp_path):
  answers = right(rows), wrong(rows)
  shares = []
  for number, (sft, lora) in enumerate(
    [(answers[0], answers[0]), (answers[1], answers[1]), answers]
  ):
    output = tmp_path / str(number)
    output.mkdir()
    write(output, 'sft', rows, sft)
    write(output, 'policy_lora', rows, lora)
    cells = montage.make_cells(montage.read_evaluations(output))
    montage.draw(cells, 'of two policies', output / 'montage.png')
    pixels = mpl_image.imread(output / 'montage.png')
    shares.append(
      [share(pixels, x) for x in (montage.RIGHT_COLOR, montage.WRONG_COLOR)]
    )
    # Three rows of four cards, each with a picture of large square pixels.
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
  (all_right, none), (nothing, all_wrong), both = shares
  assert none == nothing == 0
  assert all_right > 1e-3 and all_wrong > 1e-3
  assert all(
    0 < x < y for x, y in zip(both, (all_right, all_wrong), strict=True)
  )


def run(output):
  return subprocess.run(
    [sys.executable, SCRIPT, output],
    capture_output=True,
    text=True,
    check=False,
    cwd=output,
  )


def test_the_script_draws_fewer_samples_too(rows, tmp_path):
  write(tmp_path, 'sft', rows[:5], wrong(rows[:5]), judge_score=12.3)
  write(tmp_path, 'policy_lora', rows[:5], right(rows[:5]), judge_score=45.6)
  result = run(tmp_path)
  assert result.returncode == 0, result.stderr
  assert str(tmp_path / 'montage.png') in result.stdout
  assert mpl_image.imread(tmp_path / 'montage.png').shape[0] > 500


def test_the_title_has_the_figures_of_the_whole_split(montage):
  scores = [{'judge_score': 12.34}, {'judge_score': 56.0}]
  assert montage.make_title(scores).endswith('SFT 12.3,  LoRA policy 56.0')


def test_a_missing_evaluation_is_named(montage, rows, tmp_path):
  write(tmp_path, 'sft', rows, right(rows))
  result = run(tmp_path)
  assert result.returncode == 1
  assert str(tmp_path / 'policy_lora' / 'eval.json') in result.stderr
  assert 'launch/demo_vqa.sh' in result.stderr
  assert 'Traceback' not in result.stderr


def test_samples_without_a_judge_are_refused(montage, tmp_path):
  (tmp_path / 'sft').mkdir()
  for content in ({}, {'samples': [{'prompt': 'a', 'response': 'b'}]}):
    (tmp_path / 'sft' / 'eval.json').write_text(json.dumps(content))
    with pytest.raises(errors.DataError, match=r'judge_score.*gold\.gin'):
      montage.read_evaluations(tmp_path)


def test_samples_of_other_questions_are_refused(montage, rows, tmp_path):
  write(tmp_path, 'sft', rows, right(rows))
  write(tmp_path, 'policy_lora', rows[::-1], right(rows[::-1]))
  with pytest.raises(errors.DataError, match=r'Sample 0 in policy_lora'):
    montage.make_cells(montage.read_evaluations(tmp_path))
