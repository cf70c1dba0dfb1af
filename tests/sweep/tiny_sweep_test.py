"""A real sweep of a tiny model, by the command, and mistakes in its files."""

import json

import pytest
import runs
import starting

from perlhf_jax.cli import gin_scan
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.sweep import children as children_lib

_FEW = (
  '--gin.DatasetConfig.max_examples=48',
  '--gin.T5Config.dropout_rate=0.0',
)
_GIN = f"""
NAME = 'A tiny sweep'
COMMAND = 'train_reward'
START = %gin.REQUIRED
TASK = 'demo_rm'
MORE = ()
ARGUMENTS = {(*runs.TINY, *_FEW)}
SETTINGS = {{
  'MIXTURE_OR_TASK_NAME': %TASK,
  'INITIAL_CHECKPOINT_PATH': %START,
  'TRAIN_STEPS': 1,
  'BATCH_SIZE': 8,
  'EVAL_EXAMPLES': 8,
}}
ARMS = {{
  'attention': ('--gin_file=gin/lora/attention.gin', '--gin.LORA_RANK=2'),
  'full': ('--gin_file=gin/lora/none.gin',),
}}
LEARNING_RATES = (1e-3, 1e-2)
LEARNING_RATES_OF = {{'full': (1e-2,)}}
SEEDS = (0,)
METRIC = 'pairwise_accuracy'
EVALUATE = ('--gin.EVAL_EXAMPLES=8', '--batch_size=8')
BASELINE = 'full'
"""


@pytest.fixture(name='start', scope='module')
def _start(tmp_path_factory, preloaded):
  """An SFT model, and the gin file of a sweep from it."""
  folder = tmp_path_factory.mktemp('sweep')
  words = runs.arguments('train_sft', 'none', 'sft', 'demo_sft', steps=2)
  ended = preloaded.start(words, folder).wait()
  assert ended.code == 0, ended.err
  (folder / 'tiny.gin').write_text(_GIN)
  return folder


@pytest.fixture(name='sweep')
def _sweep(start, tmp_path, monkeypatch):
  """Runs `perlhf sweep` of the gin file; returns its exit code."""
  monkeypatch.chdir(starting.ROOT)

  def sweep(*more):
    return main.run(
      [
        'sweep',
        f'--gin_file={start / "tiny.gin"}',
        f"--gin.START='{start / 'sft'}'",
        f'--sweep_dir={tmp_path / "out"}',
        *more,
      ]
    )

  return sweep


@pytest.fixture(name='commands')
def _commands(monkeypatch, preloaded):
  """The commands that a sweep starts, which need not import everything."""
  commands = []

  def run(children, words, log):
    if children.is_told:
      raise errors.PreemptedError(children_lib.STOPPED)
    ended = preloaded.start(words, starting.ROOT).wait()
    with open(log, 'a') as file:
      file.write(ended.err)
    commands.append(words)
    # Told to stop during the third command, which has just ended.
    children.is_told = len(commands) == 3
    return children_lib.Ended(ended.code, ended.err)

  monkeypatch.setattr(children_lib.Children, 'run', run)
  return commands


def test_a_sweep_that_is_stopped_and_goes_on(sweep, commands, tmp_path, capsys):
  assert sweep() == errors.GOES_ON
  assert len(commands) == 3
  assert 'same command again' in capsys.readouterr().err
  assert sweep() == 0
  # Three tune, and one of each arm is evaluated.
  assert [words[0] for words in commands].count('train_reward') == 3
  assert len(commands) == 5
  assert len({' '.join(words) for words in commands}) == 5
  out = tmp_path / 'out'
  content = json.loads((out / 'sweep.json').read_text())
  assert {cell['state'] for cell in content['cells']} == {'done'}
  for arm in content['arms']:
    _check(out, arm, content['cells'])
  lora, full = content['arms']
  assert lora['difference']['mean'] == pytest.approx(
    lora['values']['0'] - full['values']['0']
  )
  assert 0 < lora['extra']['trainable_fraction'] < 1
  assert full['extra']['trainable_fraction'] == 1
  printed = capsys.readouterr().out
  assert '| full (baseline) | 1e-' in printed
  assert printed.strip() == (out / 'sweep.md').read_text().strip()


def _check(out, arm, cells):
  """Compares an arm with what its runs and evaluations wrote."""
  best = {}
  for cell in cells:
    if cell['arm'] != arm['name']:
      continue
    folder = out / cell['folder']
    assert (folder.parent / f'{folder.name}.log').exists()
    assert cell['value'] == max(
      record['pairwise_accuracy']
      for record in runs.metrics(folder)
      if record['split'] == 'eval'
    )
    best[cell['learning_rate']] = cell['value']
    config = (folder / 'config.gin').read_text()
    assert f'RANDOM_SEED = {cell["seed"]}' in config
    assert f'LEARNING_RATE = {cell["learning_rate"]}' in config
    if cell['learning_rate'] == arm['best_learning_rate']:
      evaluation = json.loads((folder / 'eval.json').read_text())
      assert evaluation['split'] == 'test'
      assert evaluation['examples'] == 8
      assert cell['compared'] == evaluation['pairwise_accuracy']
      assert arm['values'][str(cell['seed'])] == cell['compared']
    else:
      assert cell['compared'] is None
      assert not (folder / 'eval.json').exists()
  assert best[arm['best_learning_rate']] == max(best.values())
  assert [*best] == arm['learning_rates'] and len(arm['values']) == 1


def test_dry_run(sweep, commands, start, tmp_path, capsys):
  best = f"--gin.START='{start / 'sft'}/checkpoints/best/'"
  assert sweep('--dry_run', best) == 0
  printed = capsys.readouterr()
  lines = printed.out.splitlines()
  assert len(lines) == 3
  assert all(line.startswith('perlhf train_reward --gin_') for line in lines)
  assert not commands
  # What was printed is on record.
  content = json.loads((tmp_path / 'out/sweep.json').read_text())
  assert [cell['state'] for cell in content['cells']] == ['waiting'] * 3


ARMS = 'ranks', 'targets'
SWEEPS = [
  path.stem
  for path in sorted((starting.ROOT / 'gin' / 'sweeps').glob('*.gin'))
  if path.stem not in ARMS
]


@pytest.mark.parametrize('more', [(), ('--gin_file=gin/sweeps/ranks.gin',)])
@pytest.mark.parametrize('name', SWEEPS)
def test_our_sweeps(name, more, capsys, monkeypatch, tmp_path):
  """Every command line is right, but for the checkpoints to start from."""
  monkeypatch.chdir(tmp_path)
  words = ['sweep', f'--gin_file=gin/sweeps/{name}.gin', '--sweep_dir=out']
  macros = gin_scan.Scan(f'gin/sweeps/{name}.gin').macros
  for macro in macros:
    if macro.endswith('_PATH') or macro == 'REWARD_CHECKPOINT':
      words.append(f"--gin.{macro}='{tmp_path}'")
  assert main.run([*words, *more, '--dry_run']) == 0
  printed = capsys.readouterr().out
  arms = 6 if more else 4
  assert printed.count('perlhf train_') == 3 * arms
  assert ('--gin.LORA_RANK=32' in printed) == bool(more)


def _arm(name, *words):
  return (
    f'--gin.ARMS={{{name!r}: {words!r}}}',
    '--gin.BASELINE=None',
    '--gin.LEARNING_RATES_OF={}',
  )


_LORA = '--gin_file=gin/lora/attention.gin'


@pytest.mark.parametrize(
  ('given', 'parts'),
  [
    (_arm('b', _LORA), None),
    (_arm('b', '--gin_file=gin/lora/nonne.gin'), ['the arm b', 'nonne.gin']),
    (_arm('b', _LORA, '--gin.LORA_RNK=1'), ['the arm b', 'LORA_RNK']),
    (
      _arm('b', _LORA, '--gin.LoraConfig.rnk=1'),
      ['the arm b', 'rnk', 'did you mean rank'],
    ),
    (_arm('b', _LORA, '--gin.LORA_RANK=0'), ['the arm b', 'LORA_RANK is 0']),
    (_arm('b', _LORA, '--num_processes=2'), ['the arm b', 'one host']),
    (_arm('b', _LORA, '--check'), ['the arm b', '--check']),
    (_arm('b', _LORA, '--gin_fil=a.gin'), ['the arm b', 'gin_file']),
    (("--gin.TASK='demo_rmm'",), ['the arm attention', 'demo_rm']),
    (("--gin.START='nowhere'",), ['the arm attention', "'nowhere'"]),
    (('--gin.SEEDS=()',), ['SEEDS is empty']),
    (('--gin.LEARNING_RATES=()',), ['attention', 'no learning rates']),
    (('--gin.LEARNING_RATES=("1e-3",)',), ['LEARNING_RATES', 'a number']),
    (('--gin.ARMS={}',), ['ARMS is empty']),
    (('--gin.BASELINE="ful"',), ['BASELINE', 'full']),
    (('--gin.METRICS="a"',), ['METRICS', 'did you mean METRIC']),
    (
      ('--gin.EVALUATE=("--gin.BASELINE_CHECKPOINT=\'gone\'",)',),
      ['EVALUATE', 'BASELINE_CHECKPOINT', 'does not exist'],
    ),
    (
      ('--gin.EVALUATE=("--gin.ENSEMBLE=(\'no_rm\',)",)',),
      ['EVALUATE', 'ENSEMBLE', "'no_rm'"],
    ),
    (('--gin.EVALUATE=("--bach_size=1",)',), ['EVALUATE', 'batch_size']),
    (
      ('--gin.EVALUATE=("--gin.RewardEvaluation.penlty=1.0",)',),
      ['EVALUATE', 'penlty'],
    ),
  ],
)
def test_mistakes_end_before_work_starts(
  sweep, commands, tmp_path, capsys, given, parts
):
  code = sweep(*given, '--dry_run' if parts is None else '--nodry_run')
  printed = capsys.readouterr()
  if parts is None:  # The same without a mistake.
    assert code == 0, printed.err
    return
  assert code == 2
  assert printed.err.startswith('perlhf: error: ')
  for part in parts:
    assert part in printed.err
  assert not commands
  assert not (tmp_path / 'out').exists()


def test_a_sweep_without_a_description(capsys):
  assert main.run(['sweep', '--sweep_dir=out']) == 2
  message = capsys.readouterr().err
  for name in 'NAME', 'COMMAND', 'ARMS', 'METRIC':
    assert f'--gin.{name}=...' in message
