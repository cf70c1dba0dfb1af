"""Reports of sweeps, written by hand."""

import copy

import pytest
import report_pages

from perlhf_jax.core import errors
from perlhf_jax.report import paper
from perlhf_jax.report import report as report_lib

EVIL = '<img src=http://evil.example/x>'


def _arm(name, mean, rank=None, **fields):
  difference = None
  if name != 'full' and mean is not None:
    gain = mean - 0.947
    difference = {
      'mean': gain,
      'low': gain - 0.012,
      'high': gain + 0.012,
      'pairs': 3,
    }
  return {
    'name': name,
    'arguments': [] if rank is None else [f'--gin.LORA_RANK={rank}'],
    'learning_rates': [3e-4, 1e-3],
    'best_learning_rate': None if mean is None else 1e-3,
    'at_edge': mean is not None,
    'tuning': [
      {'learning_rate': 3e-4, 'value': 0.9},
      {'learning_rate': 1e-3, 'value': mean},
    ],
    'values': {'0': mean, '1': mean, '2': None},
    'mean': mean,
    'std': None if mean is None else 0.006,
    'difference': difference,
    'extra': {'trainable_fraction': 0.0455, 'note': EVIL, 'steps_more': 9.0},
    **fields,
  }


def _cell(arm, state, **fields):
  return {
    'arm': arm,
    'learning_rate': 1e-3,
    'seed': 0,
    'folder': f'cells/{arm}',
    'state': state,
    'value': None,
    'compared': None,
    'seconds': None,
    'error': None,
    **fields,
  }


SWEEP = {
  'format': 1,
  'name': f'ranks {EVIL}',
  'command': 'train_reward',
  'metric': 'pairwise_accuracy',
  'tuned_metric': 'loss',
  'higher_is_better': True,
  'baseline': 'full',
  'confidence': 0.95,
  'seeds': [0, 1, 2],
  'arms': [
    _arm('full', 0.947),
    _arm('attention 16', 0.95, rank=16),
    _arm('attention 1', 0.92, rank=1),
    _arm(EVIL, None, rank=8),
  ],
  'cells': [
    _cell('full', 'done', compared=0.947, seconds=90.0),
    _cell('attention 1', 'failed', error=f'no room {EVIL}'),
    _cell(EVIL, 'waiting'),
  ],
}


def write(folder, **changes):
  sweep = {**copy.deepcopy(SWEEP), **changes}
  return report_pages.write(folder, sweep__json=sweep)


def make(folder):
  report_lib.report(model_dir=str(folder))
  return report_pages.parse(folder / 'report.html')


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  return make(write(tmp_path_factory.mktemp('sweep') / 'ranks'))


def test_arms_are_compared_with_the_baseline(page):
  assert 'attention 1 0.001 (edge) 92.0% 0.6% 2 -2.7 -3.9 to -1.5' in page.text
  assert 'attention 16 0.001 (edge) 95.0% 0.6% 2 +0.3 -0.9 to +1.5' in page.text
  assert 'arms worse than the baseline 1 of 2' in page.text
  assert 'best pairwise accuracy 95.0% attention 16' in page.text


def test_ranks_stand_beside_the_papers(page):
  # The paper's differences at ranks 1 and 16, by hand.
  assert '1 attention 1 -2.7 -3.9 to -1.5 -0.6 -2.3 -1.5 -2.3' in page.text
  assert '16 attention 16 +0.3 -0.9 to +1.5 -1.6 -1.9 -1.7 -0.9' in page.text
  assert paper.SOURCE in page.text
  assert 'LoRA, rank 4 78.7 82.2 79.7 91.2' in page.text


def test_sizes_are_a_fixed_list(page):
  assert 'trainable share' in page.text
  assert 'steps more' not in page.text


def test_a_sweep_without_a_baseline(tmp_path):
  arms = [_arm('full', 0.947), _arm('lora', 0.95, rank=16, difference=None)]
  page = make(write(tmp_path, arms=arms, baseline=None))
  assert 'lora 0.001 (edge) 95.0% 0.6% 2' in page.text
  assert 'best pairwise accuracy 95.0% lora' in page.text
  assert 'difference' not in page.text.lower()
  assert 'baseline' not in page.text.lower()


def test_figures(page):
  titles = [svg['aria-label'] for svg in page.all('svg')]
  assert titles[:2] == ['pairwise accuracy by arm', 'difference from full']
  # Each arm has a curve of what was tuned, whatever ended.
  assert titles[2:] == ['full', 'attention 16', 'attention 1', EVIL]


def test_what_failed_and_what_is_missing_is_said(page):
  assert '1 of 3 runs failed' in page.text
  assert '1 of 3 runs have not begun' in page.text
  assert f'no room {EVIL}' in page.text
  assert 'at the edge of the grid for: full, attention 16' in page.text


def test_a_sweep_that_has_just_begun(tmp_path):
  arms = [_arm('full', None, tuning=[]), _arm('lora', None, tuning=[])]
  cells = [_cell('full', 'running'), _cell('lora', 'waiting')]
  page = make(write(tmp_path, arms=arms, cells=cells))
  assert not page.all('svg')
  assert '1 of 2 runs have not ended' in page.text


def test_another_command_and_numbers_beyond_plots(tmp_path):
  far = {'mean': 1e300, 'low': -1e300, 'high': 1e300, 'pairs': 2}
  arms = [_arm('full', 1e300), _arm('lora', 1e300, difference=far)]
  page = make(write(tmp_path, arms=arms, command='train_dpo', metric='loss'))
  assert 'the paper' not in page.text.lower()


def test_policies_have_the_papers_other_table(tmp_path):
  assert (
    'SFT 75.5 50.0 50.0 50.0 77.7'
    in make(write(tmp_path, command='train_policy')).text
  )


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'format': 2}, 'format 2'),
    ({'arms': None}, 'arms'),
    ({'arms': [{'name': 'x'}]}, 'learning_rates'),
    ({'cells': [1]}, 'cells'),
    ({'cells': [_cell('full', 'lost')]}, 'state'),
    ({'confidence': 2}, 'confidence'),
    ({'arms': [_arm('lora', 0.5, difference={'mean': 'x'})]}, 'Difference'),
  ],
)
def test_a_damaged_file_is_named(tmp_path, changes, named):
  folder = write(tmp_path, **changes)
  with pytest.raises(errors.CheckpointError, match=named) as caught:
    make(folder)
  assert str(folder / 'sweep.json') in str(caught.value)


@pytest.mark.parametrize('text', ['', '[]', '{"format": 1', '[' * 10_000])
def test_a_file_that_is_no_object(tmp_path, text):
  (tmp_path / 'sweep.json').write_text(text)
  with pytest.raises(errors.CheckpointError, match=r'sweep\.json'):
    make(tmp_path)


def test_the_papers_tables_are_whole():
  for table in paper.OF_COMMAND.values():
    rows = [table.full, *table.by_rank.values()]
    assert {len(row) for row in rows} == {len(table.data_sets)}
    assert all(0 < each <= 100 for row in rows for each in row)
  # Among the paper's headline figures, of its table 1.
  assert paper.REWARD.by_rank[4][:3] == (78.7, 82.2, 79.7)
  assert paper.POLICY.by_rank[16][1:] == (61.3, 86.5, 75.5, 86.4)
