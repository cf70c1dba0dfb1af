"""`perlhf plan`, with this CPU in the place of a TPU."""

import contextlib
import dataclasses
import io
import json
import types

import jax
import numpy as np
import pytest

from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.plan import slices as slices_lib
from perlhf_jax.plan import table as table_lib
from perlhf_jax.rl import reinforce
from perlhf_jax.rl import rloo
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies

EMB, JOINED, MLP, VOCAB, HEADS, BUCKETS, RANK = 32, 24, 48, 64, 2, 32, 2
BATCH, PROMPT, RESPONSE = 6, 40, 12
_COMMAND = (
  'plan',
  '--gin_file=gin/runs/plan.gin',
  '--gin_file=gin/models/t5_tiny.gin',
  '--gin_file=gin/rl/reinforce.gin',
  # Whose state one can count.
  '--gin_file=gin/optimizers/adamw.gin',
  f'--gin.T5Config.emb_dim={EMB}',
  f'--gin.T5Config.num_heads={HEADS}',
  f'--gin.T5Config.head_dim={JOINED // HEADS}',
  f'--gin.T5Config.mlp_dim={MLP}',
  f'--gin.T5Config.vocab_size={VOCAB}',
  '--gin.T5Config.num_encoder_layers=1',
  '--gin.T5Config.num_decoder_layers=1',
  '--gin.T5Config.logits_via_embedding=False',
  "--gin.T5Config.dtype='bfloat16'",
  f'--gin.LORA_RANK={RANK}',
  f'--gin.BATCH_SIZE={BATCH}',
  f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {PROMPT}, 'targets': {RESPONSE}}}",
)
MODEL = t5_config.T5Config(
  vocab_size=VOCAB,
  emb_dim=EMB,
  num_heads=HEADS,
  head_dim=JOINED // HEADS,
  mlp_dim=MLP,
  num_encoder_layers=1,
  num_decoder_layers=1,
  dropout_rate=0.0,
)
SETTING = programs_lib.Setting(
  model=MODEL,
  lora=lora_lib.LoraConfig(rank=RANK),
  optimizer=optimizers.Optimizer(),
  algorithm=reinforce.Reinforce(),
  task_feature_lengths={'inputs': PROMPT, 'targets': RESPONSE},
  batch_size=BATCH,
)


@pytest.fixture(scope='module', autouse=True)
def on_this_cpu():
  """Gives every slice the one device that tests have."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(topologies, 'devices', lambda topology: jax.devices()[:1])
    yield


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
  """The JSON, by tuning and program, and what was printed."""
  output = tmp_path_factory.mktemp('plan') / 'plan.json'
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    everything = f'--gin.PROGRAMS={programs_lib.PROGRAMS}'
    command = [*_COMMAND, everything, '--topology=v5e-1', f'--output={output}']
    assert main.run(command) == 0
  rows = json.loads(output.read_text())
  assert len(rows) == 10
  by_name = {(row['tuning'], row['program']): row for row in rows}
  return by_name, printed.getvalue()


def _count():
  """Parameters by kind, added up on paper."""
  attention = 4 * EMB * JOINED
  mlp = 3 * EMB * MLP  # Gated.
  return {
    # What a frozen backbone holds in bfloat16, of both stacks.
    'kernels': VOCAB * EMB + 3 * attention + 2 * mlp,
    'output': EMB * VOCAB,
    # Norms of both stacks, and a position bias each.
    'small': (2 + 1 + 3 + 1) * EMB + 2 * HEADS * BUCKETS,
    # Three attentions of four projections each.
    'lora': 12 * RANK * (EMB + JOINED),
    'head': EMB + 1,
  }


def _weights_and_batch(tuning, program):
  """Bytes of the arguments of a program, added up on paper."""
  n = _count()
  read_by_a_head = 2 * n['kernels'] + 4 * n['small']
  frozen = read_by_a_head + 2 * n['output']
  trained = n['lora']
  if tuning == 'full':
    trained = n['kernels'] + n['output'] + n['small']
  with_adam = 3 * 4  # A weight and two moments.
  prompts = BATCH * (PROMPT * (4 + 1) + 1)
  responses = BATCH * RESPONSE
  pairs = prompts + 2 * responses * (4 + 1) + 4 * BATCH
  if program == 'dpo_step':
    return with_adam * trained + pairs + frozen
  if program == 'reward_step':
    state = with_adam * (trained + n['head'])
    return state + pairs + (read_by_a_head if tuning == 'lora' else 0)
  samples = prompts + responses * (4 + 1 + 4)
  if program == 'rl_rollout':
    return 4 * trained + prompts + (frozen if tuning == 'lora' else 0)
  if program == 'rl_scoring':
    # The values come from the one update of REINFORCE.
    reward = 4 * trained if tuning == 'lora' else read_by_a_head
    read = prompts - BATCH + responses * (4 + 1)  # No log-probabilities.
    return frozen + reward + 4 * n['head'] + read
  state = with_adam * (2 * trained + n['head'])
  experience = samples + responses * 4 + 2 * 4 * BATCH
  return state + experience + (frozen if tuning == 'lora' else 0)


# Full tuning first, so that the row of LoRA can be compared with it.
TUNINGS = ('full', 'lora')


@pytest.mark.parametrize('tuning', TUNINGS)
@pytest.mark.parametrize('program', programs_lib.PROGRAMS)
def test_arguments_are_what_one_counts_on_paper(planned, tuning, program):
  row = planned[0][tuning, program]
  expected = _weights_and_batch(tuning, program)
  for name in ('argument_bytes', 'expected_argument_bytes'):
    # Adam's counters and the like are left out on paper.
    np.testing.assert_allclose(row[name], expected, rtol=0.005, err_msg=name)


@pytest.mark.parametrize('tuning', TUNINGS)
def test_what_waits_for_other_programs_is_held_beside(planned, tuning):
  n = _count()
  rows = planned[0]
  # Everything lies somewhere, whatever runs: arguments are held or read.
  backbone = 2 * (n['kernels'] + n['output']) + 4 * n['small']
  trained = n['lora']
  reward = 4 * (trained + n['head'])
  if tuning == 'full':
    trained = n['kernels'] + n['output'] + n['small']
    reward = backbone + 4 * n['head']
  weights = 12 * (2 * trained + n['head']) + backbone + reward
  for program in ('rl_rollout', 'rl_scoring', 'rl_update'):
    row = rows[tuning, program]
    batch = row['argument_bytes'] + row['held_bytes'] - weights
    # Prompts alone, or samples and what is said of them.
    assert 0 <= batch <= BATCH * (PROMPT * 5 + RESPONSE * 17 + 64) + 256
  assert rows[tuning, 'rl_update']['held_bytes'] > 0


def test_rows_have_the_promised_fields(planned):
  for (tuning, program), row in planned[0].items():
    assert list(row) == [
      *('program', 'tuning', 'topology', 'batch_size'),
      *('argument_bytes', 'expected_argument_bytes', 'temp_bytes'),
      *('peak_bytes', 'held_bytes', 'limit_bytes', 'fits', 'doubtful'),
      *('compile_seconds', 'fingerprint'),
    ]
    assert (row['program'], row['tuning']) == (program, tuning)
    assert (row['topology'], row['batch_size']) == ('v5e-1', BATCH)
    assert row['limit_bytes'] == 15.75 * 2**30
    assert row['fits'] is True and row['doubtful'] is False
    assert row['temp_bytes'] > 0 and row['peak_bytes'] > 0


def test_the_table_has_a_line_for_each_program(planned):
  lines = [line.split() for line in planned[1].splitlines()]
  assert ['v5e-1'] in lines
  shown = [
    tuple(line[:3]) for line in lines if line[1:2] and line[1] in TUNINGS
  ]
  assert shown == [
    (program, tuning, str(BATCH))
    for program in programs_lib.PROGRAMS
    for tuning in TUNINGS
  ]


def _row(program, tuning, peak, held, batch=8, **more):
  return {
    'program': program,
    'tuning': tuning,
    'topology': 'v5p-8',
    'batch_size': batch,
    'argument_bytes': 2**20,
    'temp_bytes': None,
    'peak_bytes': peak * 2**20,
    'held_bytes': held * 2**20,
    'limit_bytes': 2**40,
    'fits': True,
    'doubtful': False,
    'compile_seconds': 1.4,
    **more,
  }


def test_lora_is_compared_with_full_tuning_by_all_that_a_device_holds():
  table = table_lib.Table()
  rows = [
    _row('rl_update', 'full', 70, 30, fits=False),
    _row('rl_update', 'lora', 40, 2),
    _row('reward_step', 'full', 40, 0, batch=4, doubtful=True),
    _row('reward_step', 'lora', 10, 0),
  ]
  text = '\n'.join(map(table.add, rows))
  lines = {tuple(x.split()[:2]): x.split() for x in text.splitlines() if x}
  assert lines['rl_update', 'lora'][-2:] == ['42%', '1']
  assert lines['rl_update', 'full'][-2:] == ['no', '1']
  # Batches differ.
  assert lines['reward_step', 'lora'][-2:] == ['yes', '1']
  assert lines['reward_step', 'full'][-2:] == ['yes?', '1']
  assert 'yes?: arguments and temporaries' in table.foot()
  # Another slice has a heading of its own, and nothing to be compared with.
  heading = table.add({**rows[1], 'topology': 'v5e-4'}).split()
  assert heading[:2] == ['v5e-4', 'program'] and '42%' not in heading


def test_without_a_doubtful_row_nothing_stands_below():
  table = table_lib.Table()
  table.add(_row('rl_update', 'lora', 40, 2))
  assert table.foot() is None


def _program(argument=100, temp=50, peak=130, resident=110, error=None):
  """A program of which the compiler says this."""

  def compile(compiler_options):
    assert compiler_options == {'optimization_level': 9}
    if error:
      raise jax.errors.JaxRuntimeError(error)
    memory = types.SimpleNamespace(
      argument_size_in_bytes=argument,
      temp_size_in_bytes=temp,
      peak_memory_in_bytes=peak,
    )
    return types.SimpleNamespace(memory_analysis=lambda: memory)

  lowered = types.SimpleNamespace(compile=compile)
  return programs_lib.Program('it', lambda: lowered, 99, resident)


def _compile(program, limit):
  return compiling.compile_program(program, limit, compiling.OPTIONS['cheap'])


@pytest.mark.parametrize(
  ('limit', 'fits', 'doubtful'),
  [
    (139, False, False),
    (140, True, True),
    (159, True, True),
    (160, True, False),
  ],
)
def test_peak_and_what_is_held_must_fit(limit, fits, doubtful):
  row = _compile(_program(), limit)
  assert row['held_bytes'] == 10
  assert (row['fits'], row['doubtful']) == (fits, doubtful)


def test_a_program_that_is_too_large_is_a_row():
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
    'for HLO temporaries (17.50G) exceeds available HBM (15.75G).'
  )
  row = _compile(_program(error=message), int(15.75 * 2**30))
  assert row['fits'] is False and row['doubtful'] is False
  assert row['peak_bytes'] == 17.5 * 2**30
  assert (row['argument_bytes'], row['held_bytes']) == (99, 11)
  assert row['temp_bytes'] is None


def test_another_error_of_the_compiler_is_raised():
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    _compile(_program(error='INTERNAL: (1G) of bugs'), 100)


@pytest.mark.parametrize(
  ('message', 'needed'),
  [
    (
      'Used 17.05G of 15.75G hbm. Exceeded hbm capacity by 1.3G.',
      17.05 * 2**30,
    ),
    ('temporaries (512M) exceeds available HBM (7.48G)', 512 * 2**20),
    ('INVALID_ARGUMENT', None),
  ],
)
def test_bytes_needed(message, needed):
  assert compiling.bytes_needed(message) == (needed and int(needed))


def test_no_weight_of_eleven_billion_is_made():
  xxl = dataclasses.replace(
    MODEL,
    emb_dim=4096,
    num_heads=64,
    head_dim=64,
    mlp_dim=10240,
    vocab_size=32128,
    mlp_activations=('gelu', 'linear'),
    num_encoder_layers=24,
    num_decoder_layers=24,
    scan_layers=True,
    dtype='bfloat16',
  )
  setting = dataclasses.replace(SETTING, model=xxl, lora=None)
  before = sum(x.nbytes for x in jax.live_arrays())
  program = next(
    programs_lib.make_programs(setting, partitioning.make_mesh((1, -1, 1)))
  )
  # Weights alone, in float32: 11,135 M.
  assert program.argument_bytes > 4 * 11_135e6
  assert sum(x.nbytes for x in jax.live_arrays()) - before < 1e6


def test_without_a_value_model_there_is_one_model_less():
  setting = dataclasses.replace(
    SETTING,
    algorithm=rloo.Rloo(),
    num_samples=2,
    lora=None,
    optimizer=optimizers.Optimizer(name='adamw'),
  )
  programs = programs_lib.make_programs(
    setting, partitioning.make_mesh((1, -1, 1))
  )
  resident = {each.name: each.resident_bytes for each in programs}
  n = _count()
  # The policy with its moments, the reference and the reward model; MODEL is
  # plain and ties nothing, in float32.
  one = n['kernels'] - 2 * EMB * MLP + n['output'] + n['small']
  prompts = BATCH * (PROMPT * (4 + 1) + 1)
  expected = 12 * one + 4 * one + 4 * (one + n['head']) + prompts
  np.testing.assert_allclose(resident['rl_rollout'], expected, rtol=0.001)
  # Two samples of each prompt.
  samples = 2 * BATCH * RESPONSE * (4 + 1 + 4)
  assert resident['rl_scoring'] - resident['rl_rollout'] == samples


@pytest.fixture
def fitting(monkeypatch):
  """A planner in whose eyes 40 rows, or 8 devices, are what fits."""

  def fits(self, placed):
    topology, setting = placed
    return topology.num_devices >= 8 and setting.batch_size <= 40

  monkeypatch.setattr(slices_lib.Planner, 'fits', fits)
  return slices_lib.Planner(partitioning.Partitioner((1, -1, 1)), {})


def test_search_for_the_largest_batch(fitting):
  setting = dataclasses.replace(SETTING, accumulation_steps=6)
  large, small = map(topologies.find, ('v5e-16', 'v5e-4'))
  topology, found = fitting.with_largest_batch((large, setting))
  assert (topology, found.batch_size) == (large, 36)
  # Nothing fits: the smallest there is.
  assert fitting.with_largest_batch((small, setting))[1].batch_size == 6
  in_parts = dataclasses.replace(setting, rollout_parts=4)
  assert in_parts.batch_multiple(partitioning.make_mesh((1, -1, 1))) == 12


def test_search_for_the_smallest_slice(fitting):
  family = topologies.family('v5e')
  assert fitting.on_smallest_slice(family, SETTING)[0].name == 'v5e-8'
  # Nothing fits: the largest there is.
  huge = dataclasses.replace(SETTING, batch_size=48)
  assert fitting.on_smallest_slice(family, huge)[0].name == 'v5e-256'
  odd = dataclasses.replace(SETTING, accumulation_steps=4)
  with pytest.raises(errors.ConfigError, match='BATCH_SIZE 6 is not divisible'):
    fitting.on_smallest_slice(family, odd)


def test_what_does_not_fit_before_it_starts_is_not_compiled(monkeypatch):
  tiny = dataclasses.replace(topologies.find('v5e-1'), memory_bytes=1000)
  monkeypatch.setattr(
    compiling, 'compile_program', lambda *args: pytest.fail('compiled')
  )
  planner = slices_lib.Planner(partitioning.Partitioner((1, -1, 1)), {})
  assert not planner.fits((tiny, SETTING))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--topology=v5e-17',), "No TPU topology 'v5e-17'"),
    (('--topology=v5e',), 'The slices of v5e are'),
    (('--topology=',), 'TOPOLOGY is empty'),
    (('--search=topology', '--topology=h100'), "No TPU topology 'h100'"),
    (('--search=speed',), "one of 'batch_size', 'topology' or None"),
    (("--gin.TUNINGS=('lora', 'some')",), "TUNINGS is ('lora', 'some')"),
    (('--gin.TUNINGS=()',), 'TUNINGS is empty'),
    (("--gin.PROGRAMS=('dpo',)",), "PROGRAMS is ('dpo',)"),
    (('--gin.PROGRAMS=()',), 'PROGRAMS is empty'),
    (("--gin.COMPILE_LEVEL='O3'",), "one of 'cheap', 'default'"),
    (('--gin.MESH_SHAPE=(1, 3, 1)',), 'MESH_SHAPE (1, 3, 1)'),
    (('--gin.ACCUMULATION_STEPS=4',), 'BATCH_SIZE 6 is not divisible by 1'),
    (
      ('--gin.ROLLOUT_PARTS=4',),
      'ROLLOUT_PARTS 4 does not divide BATCH_SIZE 6',
    ),
    (('--gin.BATCH_SIZE=0',), 'BATCH_SIZE is 0'),
    (('--gin.MODEL=None',), 'Give a gin/models/'),
    (("--gin.TASK_FEATURE_LENGTHS={'inputs': 4}",), "has no 'targets'"),
    (('--output=no/such/folder/plan.json',), '--output=no/such/folder'),
  ],
)
def test_mistakes_are_named_before_anything_is_compiled(
  arguments, message, monkeypatch, capsys
):
  monkeypatch.setattr(
    compiling, 'compile_program', lambda *args: pytest.fail('compiled')
  )
  assert main.run([*_COMMAND, *arguments]) == 2
  assert message in capsys.readouterr().err


def test_without_libtpu_it_says_how_to_install_it(monkeypatch, capsys):
  def devices(topology):
    raise errors.ConfigError('pip install -e ".[plan]"')

  monkeypatch.setattr(topologies, 'devices', devices)
  assert main.run(list(_COMMAND)) == 2
  assert 'pip install' in capsys.readouterr().err
