import math

import hypothesis
from hypothesis import strategies
import pytest
from small_sweeps import make

from perlhf_jax.core import errors
from perlhf_jax.sweep import description


def test_cells_of_an_arm():
  sweep = make()
  lora, full = sweep.all_arms
  # Rates rise, and the first seed tunes them.
  assert sweep.tuning_cells(lora) == [
    description.Cell('lora', 1e-3, 5),
    description.Cell('lora', 3e-3, 5),
  ]
  assert sweep.tuning_cells(full) == [description.Cell('full', 1e-4, 5)]
  assert [cell.seed for cell in sweep.compared_cells(lora, 3e-3)] == [5, 6, 7]


def test_command_line_of_a_cell():
  sweep = make()
  cell = description.Cell('lora', 1e-3, 6)
  assert sweep.words(cell, 'out/a') == [
    'train_reward',
    '--gin_file=model.gin',
    '--gin.MIXTURE_OR_TASK_NAME="o\'clock"',
    '--gin.TRAIN_STEPS=3',
    '--gin_file=a.gin',
    '--gin.LEARNING_RATE=0.001',
    '--gin.RANDOM_SEED=6',
    "--gin.MODEL_DIR='out/a'",
  ]


@pytest.mark.parametrize(
  ('checkpoint', 'path'), [('best', 'a/checkpoints/best'), ('last', 'a')]
)
def test_command_line_of_an_evaluation(checkpoint, path):
  sweep = make(checkpoint=checkpoint, evaluate=('--batch_size=3',))
  assert sweep.evaluation_words('a') == [
    'evaluate',
    f'--checkpoint={path}',
    '--batch_size=3',
  ]


@pytest.mark.parametrize('tuned', [True, False])
def test_direction_of_the_compared_metric(tuned):
  both = {'metric': 'loss', 'tuned_higher_is_better': tuned}
  assert make(**both).compared_higher_is_better == tuned
  assert make(**both, evaluate=()).compared_higher_is_better == tuned
  given = make(**both, higher_is_better=tuned)
  assert given.compared_higher_is_better == tuned
  other = {**both, 'evaluate': (), 'compare': 'roc_auc'}
  assert make(**other).compared_higher_is_better
  assert not make(**other, higher_is_better=False).compared_higher_is_better


@pytest.mark.parametrize(
  ('rate', 'text'),
  [
    (3e-3, '3e-3'),
    (0.01, '1e-2'),
    (2.5e-4, '2.5e-4'),
    (1.0, '1e0'),
    (30.0, '3e1'),
    (0.123, '1.23e-1'),
  ],
)
def test_folders_name_their_rate(rate, text):
  cell = description.Cell('lora', rate, 2)
  assert cell.folder == f'lora/lr={text},seed=2'


@hypothesis.given(
  strategies.floats(min_value=1e-12, max_value=1e6, allow_subnormal=False)
)
def test_rates_are_written_exactly(rate):
  assert float(description.rate_text(rate)) == rate


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({'seeds': ()}, ['SEEDS is empty']),
    ({'seeds': (1, 1)}, ['SEEDS', '1 twice']),
    ({'learning_rates': ()}, ['lora', 'no learning rates']),
    ({'learning_rates_of': {'full': ()}}, ['full', 'no learning rates']),
    ({'learning_rates': (1e-3, 0.001)}, ['lora', '0.001 twice']),
    ({'learning_rates': (-1.0,)}, ['learning_rates', 'above 0']),
    ({'seeds': (-1,)}, ['seeds', 'at least 0']),
    ({'arms': {}}, ['ARMS is empty']),
    ({'arms': {'a/b': ()}}, ["'a/b'", 'folder']),
    ({'arms': {'sweep.json': ()}}, ["'sweep.json'", 'another name']),
    ({'arms': {'lora': '--gin_file=a.gin'}}, ['Sweep.arms', 'a list']),
    ({'command': 'evaluate'}, ['command', "'train_reward'"]),
    ({'baseline': 'ful'}, ['BASELINE', 'Did you mean full']),
    ({'learning_rates_of': {'Lora': (1.0,)}}, ['Lora', 'Did you mean lora']),
    ({'checkpoint': 'newest'}, ['checkpoint', "'last'"]),
    ({'compare': 'roc_auc'}, ['COMPARE', 'EVALUATE']),
    ({'settings': {'RANDOM_SEED': 3}}, ['SETTINGS', 'RANDOM_SEED']),
    ({'settings': {'JUDGE': print}}, ["SETTINGS['JUDGE']", 'literal']),
    ({'settings': {'A': [math.inf]}}, ["SETTINGS['A']", 'finite']),
    ({'settings': {'A': math.nan}}, ["SETTINGS['A']", 'finite']),
    (
      {'tuned_higher_is_better': False, 'higher_is_better': True},
      ['HIGHER_IS_BETTER', "'accuracy'", 'leave'],
    ),
    (
      {'higher_is_better': False, 'evaluate': (), 'compare': 'accuracy'},
      ['HIGHER_IS_BETTER', "'accuracy'", 'leave'],
    ),
    (
      {'arguments': ('--gin.LEARNING_RATE=1',)},
      ['ARGUMENTS', 'LEARNING_RATE', 'sets'],
    ),
    (
      {'arms': {'full': ('--gin_bindings=MODEL_DIR = 1',)}},
      ["ARMS['full']", 'MODEL_DIR'],
    ),
    ({'evaluate': ('--checkpoint=a',)}, ['EVALUATE', 'CHECKPOINT_PATH']),
    ({'evaluate': ('--output=a',)}, ['EVALUATE', 'OUTPUT']),
  ],
)
def test_mistakes(changes, parts):
  with pytest.raises(errors.ConfigError) as raised:
    make(**{'learning_rates_of': {}, **changes})
  for part in parts:
    assert part in str(raised.value)
