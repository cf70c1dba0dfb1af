"""`perlhf benchmark`, as a user runs it, and how it times."""

import contextlib
import io
import json
import pathlib
import statistics
import types

import jax
import numpy as np
import pytest
import runs

from perlhf_jax.benchmark import batches as batches_lib
from perlhf_jax.benchmark import benchmark
from perlhf_jax.benchmark import costs
from perlhf_jax.benchmark import policy as policy_lib
from perlhf_jax.benchmark import real_lengths
from perlhf_jax.benchmark import reward as reward_lib
from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import table as table_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.stages import train_reward
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_RUN = ('benchmark', '--gin_file=gin/runs/benchmark.gin')
_MODEL = (
  '--gin_file=gin/models/t5_tiny.gin',
  *(flag for flag in runs.TINY if flag.startswith('--gin.T5Config.')),
)
# Few tokens, nearly equally likely: responses of random weights do end.
_FEW_TOKENS = (
  '--gin.T5Config.vocab_size=4',
  '--gin.VOCABULARY=None',
  '--gin.TEMPERATURE=20.0',
)
_SMALL = (
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 20, 'targets': 24}",
  '--gin.BATCH_SIZE=4',
  '--gin.REPEATS=2',
  '--gin.LORA_RANK=2',
)
_REINFORCE = '--gin_file=gin/rl/reinforce.gin'
_RLOO = '--gin_file=gin/rl/rloo.gin'
# Several updates of a rollout, hence with a pass of the value model before.
_PPO = '--gin_file=gin/rl/ppo.gin'
_TUNINGS = ('lora', 'full')


def _measure(folder, *arguments):
  """Runs the command in `folder`; returns the JSON and what was printed."""
  printed = io.StringIO()
  output = folder / 'figures.json'
  with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
    command = [*_RUN, *arguments, *_SMALL, f'--output={output}']
    assert main.run(command) == 0
    assert list(folder.iterdir()) == [output]
  return json.loads(output.read_text()), printed.getvalue()


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  return _measure(
    tmp_path_factory.mktemp('benchmark'), *_MODEL, *_FEW_TOKENS, _PPO
  )


@pytest.fixture(scope='module')
def figures(measured):
  return measured[0]


def _sampler_names(kind):
  names = (
    *('seconds', 'tokens_per_second', 'num_steps', 'response_length'),
    *('flops', 'matmul_share', 'bytes_per_step', 'memory_share'),
  )
  return {f'sampler/{kind}/{name}' for name in names}


@pytest.mark.parametrize('name', [*_TUNINGS, 'lora_over_full'])
def test_names_of_the_figures(figures, name):
  rates = {'flops', 'matmul_share'}
  group = {'seconds', 'step_memory_bytes', 'trainable_fraction', *rates}
  throughput = {'examples_per_second', 'tokens_per_second', 'padding'}
  assert set(tree_paths.flatten(figures[name])) == {
    *(f'reward_step/{field}' for field in {*group, *throughput}),
    *(f'rl_iteration/{field}' for field in group),
    'rl_iteration/held_bytes',
    *(
      f'rl_iteration/parts/{part}/{field}'
      for part in ('sampling', 'reward', 'reference', 'value', 'learning')
      for field in ('seconds', 'share', *rates)
    ),
    *_sampler_names('early_stop'),
    *_sampler_names('no_early_stop'),
  }


@pytest.mark.parametrize('name', _TUNINGS)
def test_figures_are_medians_of_the_repeats(figures, name):
  seconds, found = figures['seconds'][name], figures[name]
  assert all(len(x) == 2 and min(x) > 0 for x in seconds.values())
  iteration, sampler = found['rl_iteration'], found['sampler']
  for label, got in (
    ('reward_step', found['reward_step']['seconds']),
    ('rl_iteration', iteration['seconds']),
    ('sampling', sampler['early_stop']['seconds']),
    ('sampling_to_the_end', sampler['no_early_stop']['seconds']),
    *((p, iteration['parts'][p]['seconds']) for p in iteration['parts']),
  ):
    assert got == statistics.median(seconds[label]), label


@pytest.mark.parametrize('name', _TUNINGS)
def test_shares_of_what_the_machine_reaches(figures, name):
  setting, found = figures['setting'], figures[name]
  assert setting['dtype'] == 'float32'
  iteration, sampler = found['rl_iteration'], found['sampler']
  parts = iteration['parts']
  for each in (found['reward_step'], iteration, *parts.values()):
    assert each['flops'] > 0
    assert each['matmul_share'] == pytest.approx(
      each['flops'] / each['seconds'] / setting['matmul_flops_per_second']
    )
  for each in sampler.values():
    assert each['memory_share'] == pytest.approx(
      each['bytes_per_step']
      * each['num_steps']
      / each['seconds']
      / setting['memory_bytes_per_second']
    )
  # The encoder runs once, whatever the number of steps.
  assert parts['sampling']['flops'] < sampler['no_early_stop']['flops']
  # What an iteration runs is its parts; each of them encodes the prompts.
  total = sum(part['flops'] for part in parts.values())
  assert 0.5 * total < iteration['flops'] <= total


def test_throughput_of_the_reward_step(figures):
  step = figures['lora']['reward_step']
  assert step['examples_per_second'] == pytest.approx(4 / step['seconds'])
  # Of 4 prompts of 20 tokens and 8 responses of 24 at most.
  places = step['tokens_per_second'] * step['seconds'] / (1 - step['padding'])
  assert places == pytest.approx(4 * 20 + 8 * 24)
  assert figures['full']['reward_step']['padding'] == step['padding']


@pytest.mark.parametrize('name', _TUNINGS)
def test_shares_of_the_parts_add_up_to_one(figures, name):
  parts = figures[name]['rl_iteration']['parts']
  assert tuple(parts) == policy_lib.PARTS
  assert sum(p['share'] for p in parts.values()) == pytest.approx(1)
  first, second = parts['sampling'], parts['learning']
  assert first['share'] / second['share'] == pytest.approx(
    first['seconds'] / second['seconds']
  )


def test_trained_share(figures):
  base = figures['setting']['parameters']
  # Twelve attention projections of 16 x 16, and the score head's 16 + 1.
  adapter = 12 * 2 * (16 + 16)
  trained = adapter + 17
  steps = {name: figures[name]['reward_step'] for name in _TUNINGS}
  assert steps['lora']['trainable_fraction'] == pytest.approx(
    trained / (base + trained)
  )
  assert steps['full']['trainable_fraction'] == 1
  # Of all roles: the reward model and the full reference are not trained.
  lora, full = (figures[n]['rl_iteration'] for n in _TUNINGS)
  assert lora['trainable_fraction'] == pytest.approx(
    (2 * adapter + 17) / (base + 3 * adapter + 2 * 17)
  )
  assert full['trainable_fraction'] == pytest.approx(
    (2 * base + 17) / (4 * base + 2 * 17)
  )


def test_memory(figures):
  base = 4 * figures['setting']['parameters']
  # Adafactor holds matrices as small as these whole, for policy and value.
  for name, least, most in (('lora', 1, 1.7), ('full', 4, 6.1)):
    held = figures[name]['rl_iteration']['held_bytes']
    assert least * base < held < most * base
    assert figures[name]['rl_iteration']['step_memory_bytes'] > base
    assert figures[name]['reward_step']['step_memory_bytes'] > base


@pytest.mark.parametrize('name', _TUNINGS)
def test_an_early_stop_makes_fewer_steps_and_the_same_samples(figures, name):
  early, late = (
    figures[name]['sampler'][kind] for kind in ('early_stop', 'no_early_stop')
  )
  assert 1 < early['response_length'] < early['num_steps']
  assert early['num_steps'] < late['num_steps'] == 24
  assert early['response_length'] == late['response_length']


def test_ratios(figures):
  lora, full, ratio = (
    tree_paths.flatten(figures[name]) for name in (*_TUNINGS, 'lora_over_full')
  )
  for path in ratio:
    assert ratio[path] == pytest.approx(lora[path] / full[path]), path


def test_printed_table(measured):
  figures, table = measured
  lines = table.splitlines()
  assert 'LoRA of rank 2' in lines[0] and 'Ppo' in lines[0]
  (heading,) = (line for line in lines if 'LoRA / full' in line)
  assert heading.split() == ['LoRA', 'full', 'LoRA', '/', 'full']
  setting = figures['setting'] | {'lora_method': 'DoRA'}
  other = table_lib.make_table(figures | {'setting': setting})
  assert 'DoRA / full' in other and 'LoRA' not in other
  for name in ('reward', 'learning'):
    row = next(x for x in lines if x.split()[:1] == [name])
    parts = [figures[t]['rl_iteration']['parts'][name] for t in _TUNINGS]
    ratio = parts[0]['seconds'] / parts[1]['seconds']
    assert row.split()[-1] == f'{ratio:.3f}'
    for part in parts:
      assert f'{part["share"]:.0%}' in row
  assert max(map(len, lines)) < 100


@pytest.fixture
def timed_by_rote(monkeypatch):
  # Calls that take 1 s, 2 s, … for LoRA, and ten times that for full tuning.
  mask = np.array([[[True, False, False]], [[True, True, False]]])
  result = types.SimpleNamespace(mask=mask, num_steps=2)
  orders, batches = {}, {}

  def measure(programs, repeats, machine):
    assert repeats == 2
    figures = {}
    for factor, (name, each) in zip((1, 10), programs.items(), strict=True):
      orders[name] = list(each.calls())
      figures[name] = each.figures(
        {
          call: timing.Measured(
            [timing.Timing(factor * second, result)],
            costs.Cost(1, 1, 1),
            machine,
          )
          for second, call in enumerate(each.calls(), start=1)
        }
      )
      if 'reward_step' in figures[name]:  # It is known once it is compiled.
        figures[name]['reward_step']['step_memory_bytes'] = 1
        batches[name] = each._batch
    return figures, {name: {'a': [1.0]} for name in figures}

  monkeypatch.setattr(timing, 'measure', measure)
  return orders, batches


def test_weights_of_a_checkpoint_and_prompts_of_a_task(tmp_path, timed_by_rote):
  orders, _ = timed_by_rote
  figures, _ = _measure(
    tmp_path,
    _RLOO,
    f"--gin.INITIAL_CHECKPOINT_PATH='{_GOLDEN / 'hf_t5_v1_1'}'",
    "--gin.MIXTURE_OR_TASK_NAME='demo_prompts'",
    '--gin.MODEL=None',
    '--gin.VOCABULARY=None',
    '--gin.NUM_SAMPLES=2',
  )
  setting = figures['setting']
  assert setting['weights'].endswith('hf_t5_v1_1')
  assert setting['prompts'] == 'demo_prompts'
  assert 1 < setting['prompt_lengths'][0] <= setting['prompt_lengths'][2] <= 20
  assert setting['algorithm'] == 'Rloo' and setting['num_samples'] == 2
  for factor, name in ((1, 'lora'), (10, 'full')):
    seconds = {c: factor * (i + 1) for i, c in enumerate(orders[name])}
    parts = figures[name]['rl_iteration']['parts']
    # No value model.
    assert list(parts) == ['sampling', 'reward', 'reference', 'learning']
    total = sum(seconds[part] for part in parts)
    for part in parts:
      assert parts[part]['seconds'] == seconds[part]
      assert parts[part]['share'] == pytest.approx(seconds[part] / total)
    sampler = figures[name]['sampler']['early_stop']
    assert {n: sampler[n] for n in ('seconds', 'num_steps')} == {
      'seconds': seconds['sampling'],
      'num_steps': 2,
    }
    assert sampler['tokens_per_second'] == 3 / seconds['sampling']
    assert sampler['response_length'] == 1.5


def test_pictures_of_a_task(tmp_path, timed_by_rote, monkeypatch):
  _, batches = timed_by_rote
  asked = []

  def measure(programs, batches, *_):
    asked.extend(batches)
    return {name: {'seconds': 1.0} for name in programs}

  monkeypatch.setattr(real_lengths, 'measure', measure)
  monkeypatch.setattr(benchmark.table_lib, 'make_table', str)
  figures, _ = _measure(
    tmp_path,
    *(_REINFORCE, *runs.TINY_PALI),
    "--gin.MIXTURE_OR_TASK_NAME='demo_vqa_rm'",
    '--gin.TASK_BATCHES=3',
  )
  examples = input_pipeline.load_examples(
    input_pipeline.DatasetConfig(
      mixture_or_task_name='demo_vqa_rm',
      task_feature_lengths={'inputs': 20, 'targets': 24},
      batch_size=4,
      length_buckets=0,
    ),
    vocabularies.byte_vocabulary(),
    32,
  )
  wanted = next(input_pipeline.train_iterator(examples))
  assert figures['setting']['objective'] == examples.kind.name
  for batch in batches.values():
    assert set(batch) == set(wanted)
    for name, array in wanted.items():
      np.testing.assert_array_equal(np.asarray(batch[name]), array, name)
  # The consecutive ones are shorter, and have pictures too.
  assert len(asked) == 3
  assert {b['images'].shape for b in asked} == {wanted['images'].shape}
  assert asked[0]['prompt_tokens'].shape[1] <= 20


@pytest.mark.parametrize('tuning', _TUNINGS)
def test_training_leaves_what_the_others_start_from(tuning):
  config = t5_config.T5Config(
    vocab_size=20,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
  )
  mesh = partitioning.make_mesh()
  start = benchmark.with_random_weights(
    loaded_model.LoadedModel(config), mesh, 0
  )
  rng = np.random.default_rng(0)
  limits = {'inputs': 6, 'targets': 4}
  prompts = batches_lib.random_prompts(rng, 2, limits, 20, None)
  pairs = batches_lib.pair_batch(rng, prompts, limits, 20)
  setting = setting_lib.Setting(
    lora=lora_lib.LoraConfig(rank=2) if tuning == 'lora' else None,
    optimizer=optimizers.Optimizer(learning_rate=0.1),
    mesh=mesh,
    seed=0,
  )
  programs = reward_lib.RewardPrograms(start, setting, kinds.PAIRWISE, pairs)
  before = jax.tree.map(np.array, start.params)
  step = programs.calls()['reward_step']
  first, second = step(1), step(2)
  assert first['loss'] != second['loss']
  jax.tree.map(np.testing.assert_array_equal, start.params, before)
  # What scores is what was trained.
  model, variables = programs.trained()
  scores = train_reward.make_loss(model, kinds.PAIRWISE, 0.0)(
    tree_paths.overlay({'params': start.params}, variables),
    {},
    pairs,
    None,
  )
  assert float(scores.loss_sum / scores.weight_sum) == pytest.approx(
    float(step(3)['loss'])
  )


# Bad input.


@pytest.mark.parametrize(
  ('arguments', 'wanted'),
  [
    ((_REINFORCE,), ('gin/models/t5_tiny.gin', '%MODEL')),
    (_MODEL, ('gin/rl/', '%ALGORITHM')),
    (
      (*_MODEL, _REINFORCE, '--gin.MODEL=None'),
      ('gin/models', 'INITIAL_CHECKPOINT_PATH'),
    ),
    ((*_MODEL, _REINFORCE, '--gin.REPEATS=0'), ('REPEATS is 0',)),
    ((*_MODEL, _REINFORCE, '--gin.TUNINGS=()'), ('TUNINGS is empty',)),
    (
      (*_MODEL, _REINFORCE, "--gin.TUNINGS=('half',)"),
      ('TUNINGS', "'half'", "'lora', 'full'"),
    ),
    ((*_MODEL, _REINFORCE, '--gin.TEMPERATURE=0'), ('TEMPERATURE is 0',)),
    ((*_MODEL, _REINFORCE, '--gin.BATCH_SIZE=0'), ('BATCH_SIZE is 0',)),
    ((*_MODEL, _REINFORCE, '--gin.LORA_RANK=0'), ('LORA_RANK is 0',)),
    ((*_MODEL, _RLOO, '--gin.NUM_SAMPLES=1'), ('NUM_SAMPLES is 1', 'Rloo')),
    (
      (*_MODEL, _REINFORCE, "--gin.TASK_FEATURE_LENGTHS={'inputs': 4}"),
      ("no 'targets'",),
    ),
    (
      (
        *(*_MODEL, _REINFORCE),
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 4}",
      ),
      ('TASK_FEATURE_LENGTHS is', 'at least 1'),
    ),
    (
      (
        *(*_MODEL, _REINFORCE, '--gin.VOCABULARY=None'),
        "--gin.MIXTURE_OR_TASK_NAME='demo_prompts'",
      ),
      ('VOCABULARY', 'demo_prompts'),
    ),
    (
      (*_MODEL, _REINFORCE, "--gin.INITIAL_CHECKPOINT_PATH='nowhere'"),
      ('nowhere', 'no such folder'),
    ),
    ((*_MODEL, _REINFORCE, '--output=nowhere/x.json'), ('nowhere/x.json',)),
  ],
)
def test_errors(capsys, arguments, wanted):
  assert main.run([*_RUN, *arguments]) == 2
  printed = capsys.readouterr()
  assert not printed.out
  assert printed.err.count('perlhf: error:') == 1
  assert 'Traceback' not in printed.err
  for text in wanted:
    assert text in printed.err
