"""Reports of runs and of folders of runs, written by hand."""

import dataclasses
import json
import os
import re
import shlex
import sys

from etils import epath
import jax
import pytest
import report_pages
import tiny_metadata
import tiny_pali

from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.report import answers
from perlhf_jax.report import curves
from perlhf_jax.report import figure_tables
from perlhf_jax.report import report as report_lib
from perlhf_jax.report import run_files

EVIL = '<script>alert("é")</script>'
EVIL_METRIC = '"><img src=http://evil.example/x onerror=alert(1)>$\\frac{'
IMAGE = 'sample_images/0123456789abcdef.png'


def make(folder, **kwargs):
  report_lib.report(model_dir=str(folder), **kwargs)
  return report_pages.parse(folder / 'report.html')


def samples(step, response, **fields):
  prompts = [
    {'prompt': f'todo: Vet {EVIL}', 'images': [IMAGE, '../secret.png']},
    {'prompt': 'x' * 1_000_000},
    *({'prompt': f'todo {number}'} for number in range(20)),
  ]
  return [
    {'step': step, 'response': response, 'score': step / 10, **each, **fields}
    for each in prompts
  ]


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
  """A policy with hostile records."""
  folder = tmp_path_factory.mktemp('runs') / 'policy <b>lora'
  names = 'score', 'kl_k1', 'response_length', 'entropy', 'loss', EVIL_METRIC
  records = report_pages.records(names)
  report_pages.write(
    folder,
    metrics__jsonl=records,
    samples__jsonl=[
      *samples(10, 'early answer'),
      *samples(20, 'middle answer'),
      *samples(40, 'late answer', judge_score=100.0, references=['vet']),
    ],
    eval__json=report_pages.policy_evaluation(87.4, 'tested answer'),
    summary__json=report_pages.SUMMARY,
    config__gin=report_pages.config('train_policy') + f'X = "{EVIL}"\n',
  )
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 41, "split": "tra\n{"step": "many"}\n')
    file.write('{"step": 42, "split": "train", "loss": 1e999}\n')
  (folder.parent / 'secret.png').write_bytes(tiny_pali.png(9, 8, 8))
  (folder / 'sample_images').mkdir()
  (folder / IMAGE).write_bytes(tiny_pali.png(0, 8, 8))
  return folder


@pytest.fixture(scope='module')
def page(policy):
  return make(policy)


def test_curves_and_headlines(page):
  titles = {svg['aria-label'] for svg in page.all('svg')}
  assert {
    'score (reward)',
    'response length (tokens)',
    'entropy',
    'loss',
    'score (reward) against KL',
  } <= titles
  assert "judge's score 87.4" in page.text
  assert 'win rate 80.0% ± 1.0%' in page.text
  assert 'memory of a step 61.8 MiB' in page.text
  assert '2 x cpu' in page.text
  assert 'test, step 40' in page.text
  assert 'demo_prompts/test, 1 examples, step 40' in page.text
  assert 'has not finished' not in page.text


def test_responses_before_and_after(page):
  for text in ('early answer', 'late answer', 'tested answer', 'right: vet'):
    assert text in page.text
  assert 'middle answer' not in page.text
  assert "judge's score 100, score 4" in page.text
  # Of the training, and of the evaluation.
  assert len(page.all('article')) == answers.MAX_SAMPLES + 1
  assert f'first {answers.MAX_SAMPLES} of 22 are shown' in page.text


def test_texts_of_files_are_escaped_and_bounded(page, policy):
  assert f'todo: Vet {EVIL}' in page.text
  assert 'policy <b>lora' in page.text
  assert 'more characters' in page.text
  assert page.text.count(f'X = "{EVIL}"') == 1
  assert (policy / 'report.html').stat().st_size < 2_000_000


def test_only_images_of_the_run_are_embedded(page):
  images = page.all('img')
  assert len(images) == 1
  assert images[0]['src'].startswith('data:image/png;base64,')
  assert '1 images are left out' in page.text


def test_ids_are_unique_and_references_lead_somewhere(page):
  ids = [attrs['id'] for _, attrs in page.elements if 'id' in attrs]
  assert len(ids) == len(set(ids)) > 0
  for _, attrs in page.elements:
    for value in attrs.values():
      for name in re.findall(r'^#(.+)|url\(#([^)]+)\)', value or ''):
        assert ''.join(name) in ids


def test_damaged_lines_are_named_and_nothing_is_changed(page, policy):
  assert 'metrics.jsonl: left out damaged lines: 45, 46.' in page.text
  text = (policy / 'metrics.jsonl').read_text()
  assert '"tra\n' in text
  assert sorted(each.name for each in policy.iterdir()) == [
    'config.gin',
    'eval.json',
    'metrics.jsonl',
    'report.html',
    'sample_images',
    'samples.jsonl',
    'summary.json',
  ]


def test_a_second_report_is_the_same(page, policy):
  first = (policy / 'report.html').read_bytes()
  make(policy)
  assert (policy / 'report.html').read_bytes() == first


def test_a_half_finished_run(tmp_path, capsys):
  folder = report_pages.write(
    tmp_path / 'rm',
    metrics__jsonl=report_pages.records(['loss'], steps=12),
    config__gin=report_pages.config('train_reward'),
  )
  output = tmp_path / 'page.html'
  flags = f'--model_dir={folder}', f'--output={output}'
  assert main.run(['report', *flags]) == 0
  assert str(output) in capsys.readouterr().out
  page = report_pages.parse(output)
  assert not (folder / 'report.html').exists()
  assert 'has not finished' in page.text
  assert 'end at step 12 of 40' in page.text
  assert 'There is no eval.json' in page.text
  assert 'No step has been saved yet' in page.text
  assert [svg['aria-label'] for svg in page.all('svg')] == ['loss']
  assert 'loss 10 validation, step 10' in page.text


def test_a_longer_run_that_has_not_ended(tmp_path):
  folder = report_pages.write(
    tmp_path / "it's rm",
    metrics__jsonl=report_pages.records(['loss'], steps=12),
    config__gin=report_pages.config('train_reward'),
    summary__json={**report_pages.SUMMARY, 'steps': 10},
  )
  text = make(folder).text
  assert 'end at step 12 of 40; summary.json is of its first 10 steps' in text
  # A shell takes it as one word.
  command = re.search('(perlhf evaluate .*) writes it', text)[1]
  assert shlex.split(command)[-1] == f'--checkpoint={folder}'


def test_long_cells_are_wrapped(tmp_path):
  folder = report_pages.write(
    tmp_path / 'rm',
    config__gin=report_pages.config('train_reward'),
    summary__json={**report_pages.SUMMARY, 'device_kind': 'gpu' * 20},
  )
  cells = [attrs.get('class') for attrs in make(folder).all('td')]
  assert cells.count('long') == 1
  assert len(cells) > 1


def test_a_run_that_has_just_begun(tmp_path):
  folder = report_pages.write(tmp_path / 'sft', metrics__jsonl='')
  page = make(folder)
  assert 'There are no records of metrics' in page.text
  assert 'There is no config.gin' in page.text
  assert not page.all('svg')


def test_damaged_figures_are_named(tmp_path):
  folder = report_pages.write(
    tmp_path / 'rm',
    config__gin='',
    eval__json='[1]',
    summary__json='{"steps": ',
  )
  text = make(folder).text
  assert 'eval.json is damaged' in text
  assert 'summary.json is damaged' in text
  assert 'has not finished' not in text


def test_figures_that_are_something_else(tmp_path):
  strange = {
    'bins': {'reliability': {'value': 'x', 'outcome': [1e999, 'y']}},
    'best_of': [1],
    'samples': [1, {'prompt': {}, 'response': None, 'references': 3}],
    'pairwise_accuracy': 'high',
    'split': ['a'],
  }
  text = '{"x": 1e999, ' + json.dumps(strange)[1:]
  folder = report_pages.write(
    tmp_path / 'rm',
    config__gin=report_pages.config('train_reward'),
    eval__json=text.replace('Infinity', '1e999'),
    summary__json={'steps': 'many', 'device_kind': 7},
    samples__jsonl=[{'step': 1, 'prompt': 3, 'response': [EVIL]}],
  )
  assert EVIL in make(folder).text


def test_many_metrics_and_records_stay_readable(tmp_path):
  names = [f'metric_{number}' for number in range(curves.MAX_CURVES + 5)]
  numbers = dict.fromkeys(names, 1.0)
  lines = [{'step': 1, 'split': 'train', **numbers}]
  lines += [
    {'step': step, 'split': 'train', 'loss': 1 / step}
    for step in range(2, 20_000)
  ]
  folder = report_pages.write(tmp_path / 'long', metrics__jsonl=lines)
  page = make(folder)
  assert len(page.all('svg')) == curves.MAX_CURVES
  assert 'Not drawn: ' in page.text
  assert 'mean of several consecutive records' in page.text
  assert (folder / 'report.html').stat().st_size < 1_500_000


def test_the_adapters_of_a_run(tmp_path):
  for dora, title in ((False, 'LoRA of rank 8'), (True, 'DoRA of rank 8')):
    lora = dataclasses.replace(tiny_metadata.METADATA.lora, dora=dora)
    metadata = dataclasses.replace(tiny_metadata.METADATA, lora=lora)
    run = dataclasses.replace(
      run_files.read(epath.Path(tmp_path)), metadata=metadata
    )
    table, *_ = figure_tables.configuration([run])
    assert title in table.rows[0][-1]


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """What launch/demo.sh leaves, without steps."""
  root = tmp_path_factory.mktemp('demo_output')
  for tuning, accuracy in (('lora', 0.934), ('full', 0.947)):
    report_pages.write(
      root / f'reward_{tuning}',
      metrics__jsonl=report_pages.records(['pairwise_accuracy']),
      eval__json=report_pages.reward_evaluation(accuracy),
      summary__json=report_pages.SUMMARY,
      config__gin=report_pages.config('train_reward'),
    )
    report_pages.write(
      root / f'policy_{tuning}',
      metrics__jsonl=report_pages.records(['score', 'kl_k1']),
      eval__json=report_pages.policy_evaluation(80, f'answer of {tuning}'),
      summary__json=report_pages.SUMMARY,
      config__gin=report_pages.config('train_policy'),
    )
  report_pages.write(
    root / 'sft',
    metrics__jsonl=report_pages.records(['loss']),
    eval__json=report_pages.policy_evaluation(43.7, 'answer of SFT'),
    summary__json=report_pages.SUMMARY,
    config__gin=report_pages.config('train_sft'),
  )
  report_pages.write(root, demo__json={'seconds': 703})
  (root / 'notes').mkdir()
  return root


def test_the_demo_side_by_side(demo):
  page = make(demo)
  titles = [svg['aria-label'] for svg in page.all('svg')]
  # One plot has both tunings.
  assert titles.count('calibration') == 1
  assert titles.count('score (reward) against KL') == 1
  for text in (
    '93.4%',
    '94.7%',
    'answer of lora',
    'answer of full',
    '11.7 min',
  ):
    assert text in page.text
  before = page.text.index('answer of SFT')
  assert before < page.text.index('answer of lora')
  assert len(page.all('article')) == 1
  assert 'reward_lora' in page.text


def test_losses_of_other_objectives_are_drawn_apart(demo, tmp_path):
  for name in 'policy_lora', 'policy_full':
    (tmp_path / name).symlink_to(demo / name)
  report_pages.write(
    tmp_path / 'policy_dpo',
    metrics__jsonl=report_pages.records(['loss', 'score']),
    config__gin=report_pages.config('train_dpo'),
  )
  page = make(tmp_path)
  titles = [svg['aria-label'] for svg in page.all('svg')]
  assert titles.count('loss') == 1
  assert titles.count('score (reward)') == 2
  assert 'Policies: curves of policy_dpo' in page.text
  assert 'Policies: curves of policy_lora, policy_full' in page.text


def test_choices_among_candidates_are_shares(tmp_path):
  folder = report_pages.write(
    tmp_path / 'rm',
    config__gin=report_pages.config('train_reward'),
    eval__json={
      'checkpoint': '/runs/rm/checkpoints/40',
      'step': 40,
      'input': 'candidates.jsonl',
      'examples': 30,
      'score': 0.7125,
      'standard_error': 0.0213,
      'subsets': {
        'score': {'score': 0.8, 'standard_error': 0.1, 'ties': 2, 'lines': 30}
      },
    },
  )
  text = make(folder).text
  assert 'accuracy 71.2% ± 2.1% evaluation, step 40' in text
  assert 'subsets.score.accuracy 80.0%' in text
  assert 'candidates.jsonl, 30 examples, step 40' in text
  assert 'reward)' not in text


def test_runs_that_are_left_out_are_named(tmp_path):
  for number in range(18):
    report_pages.write(tmp_path / f'run_{number:02}', metrics__jsonl='')
  page = make(tmp_path)
  assert 'first 16 runs are shown, without run_16, run_17.' in page.text
  assert 'run_15: ' in page.text
  assert 'run_16: ' not in page.text


@pytest.mark.parametrize('name', ['foreign', 'missing', 'empty', 'file'])
def test_a_foreign_folder(tmp_path, capsys, name):
  report_pages.write(tmp_path / 'foreign', config__json={}, notes__txt='x')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'file').write_text('x')
  assert main.run(['report', f'--model_dir={tmp_path / name}']) == 2
  message = capsys.readouterr().err
  assert str(tmp_path / name) in message
  assert 'MODEL_DIR' in message
  assert 'sweep.json' in message


def test_a_pipe_is_not_waited_for(tmp_path):
  folder = report_pages.write(tmp_path / 'rm', config__gin='')
  os.mkfifo(folder / 'metrics.jsonl')
  with pytest.raises(
    errors.CheckpointError, match=r'metrics\.jsonl.*named pipe'
  ):
    make(folder)


@pytest.mark.parametrize('library', ['jinja2', 'matplotlib'])
def test_a_missing_library_is_named(demo, library, monkeypatch):
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(
    errors.ConfigError, match=rf'{library}.*perlhf-jax\[report'
  ):
    make(demo)


def test_an_output_that_cannot_be_written(demo, tmp_path, monkeypatch):
  monkeypatch.setattr(report_lib, 'make_page', None)  # It is not called.
  for output in (tmp_path / 'no' / 'page.html', tmp_path):
    with pytest.raises(errors.ConfigError, match='--output'):
      make(demo, output_path=str(output))


def test_no_accelerator_is_started(demo, monkeypatch):
  updates = []
  monkeypatch.setattr(
    jax.config, 'update', lambda *setting: updates.append(setting)
  )

  def read(folder):
    assert updates == [('jax_platforms', 'cpu')]
    raise errors.CheckpointError(str(folder))

  monkeypatch.setattr(report_lib, 'make_page', read)
  with pytest.raises(errors.CheckpointError, match='demo_output'):
    make(demo)
