"""Mistakes with images end before training, naming file and record."""

import json

import pytest
import runs
import tiny_pali

from perlhf_jax.cli import main
from perlhf_jax.data import sources


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """`pali`, an SFT checkpoint that reads pictures, `rm` on it, and `text`."""
  root = tmp_path_factory.mktemp('image_bad_input')
  runs.train(
    'train_sft',
    'none',
    root / 'pali',
    'demo_vqa_sft',
    '--gin.TRAIN_VIT=True',
    steps=1,
    tiny=runs.TINY_PALI,
  )
  runs.train('train_sft', 'none', root / 'text', 'demo_sft', steps=1)
  return root


def fails(capsys, arguments):
  """Runs a command line that must fail; returns its message."""
  assert main.run([str(a) for a in arguments]) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error:') == 1
  assert 'Traceback' not in message
  return message


def check(message, *wanted):
  for words in wanted:
    assert words in message


def train(tmp_path, task, *more, tiny=runs.TINY_PALI, command='train_reward'):
  return runs.arguments(
    command, 'attention', tmp_path / 'out', task, *more, tiny=tiny
  )


def train_policy(root, tmp_path, *more):
  return train(
    tmp_path,
    'demo_vqa_prompts',
    start(root / 'pali'),
    '--gin_file=gin/rl/reinforce.gin',
    *more,
    command='train_policy',
  )


def start(path):
  return f"--gin.INITIAL_CHECKPOINT_PATH='{path}'"


def test_a_task_with_images_for_a_text_model(root, tmp_path, capsys):
  arguments = train(
    tmp_path, 'demo_vqa_rm', start(root / 'text'), tiny=runs.TINY
  )
  message = fails(
    capsys,
    [*arguments, "--gin.TASK_FEATURE_LENGTHS={'inputs': 28, 'targets': 13}"],
  )
  check(message, 'demo_vqa_rm', 'only text', 'pali_tiny.gin')


def test_a_model_file_of_another_kind(root, tmp_path, capsys):
  message = fails(capsys, train(tmp_path, 'demo_vqa_rm', start(root / 'text')))
  check(message, 'different models', 'vit.patch_size 8 (checkpoint None)')
  message = fails(
    capsys, train(tmp_path, 'demo_rm', start(root / 'pali'), tiny=runs.TINY)
  )
  check(message, 'vit.patch_size None (checkpoint 8)')


def test_a_frozen_vit_that_saw_nothing(tmp_path, capsys):
  arguments = runs.arguments(
    'train_sft',
    'none',
    tmp_path / 'out',
    'demo_vqa_sft',
    tiny=runs.TINY_PALI,
  )
  check(fails(capsys, arguments), 'train_vit is False', 'Set train_vit to True')


def test_a_resolution_that_patches_do_not_divide(root, tmp_path, capsys):
  message = fails(
    capsys,
    train(tmp_path, 'demo_vqa_rm', start(root / 'pali'), '--gin.IMAGE_SIZE=30'),
  )
  check(message, 'image_size is 30', 'patch_size, 8', '24 or 32')


def test_a_reward_model_of_another_resolution(root, tmp_path, capsys):
  reward = tmp_path / 'reward'
  runs.train(
    'train_reward',
    'attention',
    reward,
    'demo_vqa_rm',
    '--gin.IMAGE_SIZE=16',
    start=root / 'pali',
    steps=1,
    tiny=runs.TINY_PALI,
  )
  arguments = train_policy(
    root, tmp_path, f"--gin.REWARD_CHECKPOINT='{reward}'"
  )
  message = fails(capsys, arguments)
  check(message, 'images of 16 pixels', 'images of 32 pixels')


def test_a_reward_model_that_reads_text_alone(root, tmp_path, capsys):
  reward = tmp_path / 'reward'
  runs.train(
    'train_reward',
    'attention',
    reward,
    'demo_rm',
    start=root / 'text',
    steps=1,
  )
  arguments = train_policy(
    root, tmp_path, f"--gin.REWARD_CHECKPOINT='{reward}'"
  )
  check(fails(capsys, arguments), 'reads only text', '32 pixels')


def test_references_are_not_trained_on(root, tmp_path, capsys):
  gold = tmp_path / 'gold.gin'
  gold.write_text(
    'from __gin__ import dynamic_registration\n'
    'from tasks import demo_vqa\n'
    'REWARD_FUNCTIONS = (@demo_vqa.gold_scores,)\n'
  )
  arguments = train_policy(
    root, tmp_path, f'--gin_file={gold}', '--gin.REWARD_CHECKPOINT=None'
  )
  check(fails(capsys, arguments), 'demo_vqa.gold_scores', 'JUDGE')


def _row(**fields):
  return {'prompt': 'how many shapes?', 'response': '1', **fields}


@pytest.fixture(name='pictures')
def _pictures(tmp_path):
  (tmp_path / 'a.png').write_bytes(tiny_pali.png(0))
  (tmp_path / 'bad.png').write_text('no picture')
  return tmp_path


@pytest.mark.parametrize('command', ['score', 'generate'])
@pytest.mark.parametrize(
  ('row', 'wanted'),
  [
    (_row(), 'in.jsonl:2 has no "image"'),
    (_row(image='gone.png'), 'gone.png does not exist'),
    (_row(image='bad.png'), 'bad.png cannot be decoded'),
    (_row(image=['a.png', 'a.png']), 'in.jsonl:2 has 2 images'),
    (_row(image=7), 'in.jsonl:2: "image" is 7'),
    (_row(image=['a.png', '']), 'in.jsonl:2: "image" is'),
  ],
)
def test_lines(root, pictures, capsys, command, row, wanted):
  source = runs.write_rows(
    pictures / 'in.jsonl', [_row(image='a.png'), row, _row(image=None)]
  )
  output = pictures / 'out.jsonl'
  arguments = [command, f'--checkpoint={root / "pali"}', f'--input={source}']
  message = fails(capsys, [*arguments, f'--output={output}'])
  check(message, wanted, 'in.jsonl:2')
  assert not output.exists()


def test_a_line_with_an_image_for_a_text_model(root, pictures, capsys):
  source = runs.write_rows(pictures / 'in.jsonl', [_row(), _row(image='a.png')])
  arguments = ['score', f'--checkpoint={root / "text"}', f'--input={source}']
  message = fails(capsys, [*arguments, f'--output={pictures / "out.jsonl"}'])
  check(message, 'in.jsonl:2 has an image', 'only text')


def test_paths_are_relative_to_the_file(root, pictures, monkeypatch):
  monkeypatch.chdir('/')
  rows = runs.score(root / 'pali', [_row(image='a.png')], pictures)
  assert rows[0]['image'] == 'a.png'
  assert rows[0]['logprob'] < 0


def test_a_bad_image_of_a_task(root, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'data' / 'train'
  (folder / 'images').mkdir(parents=True)
  questions = [[f'question {n}', 'yes', n] for n in range(30)]
  (folder / 'questions.json').write_text(json.dumps(questions))
  for number in range(30):
    (folder / 'images' / f'{number}.png').write_bytes(tiny_pali.png(number))
  test = tmp_path / 'data' / 'test'
  (test / 'images').mkdir(parents=True)
  (test / 'images' / '0.png').write_bytes(tiny_pali.png(0))
  (test / 'questions.json').write_text(json.dumps(questions[:1]))
  for number in range(10, 30):
    (folder / 'images' / f'{number}.png').write_bytes(b'\x89PNG cut')
  monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path / 'data'))
  arguments = train(
    tmp_path, 'easy_vqa_sft', start(root / 'pali'), command='train_sft'
  )
  message = fails(capsys, arguments)
  check(message, 'questions.json#', '.png cannot be decoded', 'SKIP_BAD_ROWS')


def test_benchmark_of_a_task_without_images(capsys):
  message = fails(capsys, ['benchmark_input', '--task=demo_sft'])
  check(message, "'demo_sft' has no images")
