"""The compiler's account of memory on TPU slices that are not here."""

import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from perlhf_jax.cli import main
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.plan import slices as slices_lib
from perlhf_jax.rl import reinforce
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies

# Wide enough that what a TPU pads is little beside the weights.
MODEL = t5_config.T5Config(
  vocab_size=2048,
  emb_dim=1024,
  num_heads=8,
  head_dim=128,
  mlp_dim=2048,
  mlp_activations=('gelu', 'linear'),
  num_encoder_layers=2,
  num_decoder_layers=2,
  dropout_rate=0.0,
  dtype='bfloat16',
  scan_layers=True,
  remat_policy='full',
)
SETTING = programs_lib.Setting(
  model=MODEL,
  lora=lora_lib.LoraConfig(rank=8),
  optimizer=optimizers.Optimizer(),
  algorithm=reinforce.Reinforce(),
  task_feature_lengths={'inputs': 128, 'targets': 32},
  batch_size=16,
)
PARTITIONER = partitioning.Partitioner((1, -1, 1))
CHEAP = compiling.OPTIONS['cheap']


@pytest.mark.parametrize(
  'name',
  [
    *('v3-8', 'v4-128', 'v5e-1', 'v5p-16', 'v6e-1', 'v6e-8', 'tpu7x-2'),
    *('tpu7x-16', '2xv5e-16', '2xtpu7x-8'),
  ],
)
def test_libtpu_makes_the_devices_that_the_table_promises(name):
  topology = topologies.find(name)
  assert len(topologies.devices(topology)) == topology.num_devices


@pytest.fixture(scope='module')
def reward_step():
  topology = topologies.find('v5e-4')
  planner = slices_lib.Planner(PARTITIONER, CHEAP)
  programs = programs_lib.make_programs(SETTING, planner.mesh(topology))
  return compiling.compile_program(next(programs), topology.memory_bytes, CHEAP)


def test_arguments_of_a_device_are_its_shards(reward_step):
  attention, mlp = 4 * 1024 * 1024, 3 * 1024 * 2048
  # bfloat16, split in four; all that is smaller is within the tolerance.
  weights = 2 * (2048 * 1024 + 2 * 3 * attention + 2 * 2 * mlp) / 4
  # Two layers of twelve projections; of A and B, one is split. They are too
  # narrow for Adafactor to factor their second moments.
  adapters = 2 * 4 * 2 * 12 * 8 * (1024 + 1024 / 4)
  assert reward_step['argument_bytes'] == pytest.approx(
    weights + adapters, rel=0.01
  )
  assert reward_step['expected_argument_bytes'] == pytest.approx(
    reward_step['argument_bytes'], rel=0.01
  )


def test_a_small_step_fits(reward_step):
  assert reward_step['fits'] and not reward_step['doubtful']
  assert (
    reward_step['argument_bytes']
    < reward_step['peak_bytes']
    < reward_step['limit_bytes'] / 10
  )


def test_a_step_that_is_too_large_is_a_row_with_its_size():
  topology = topologies.find('v5e-1')
  planner = slices_lib.Planner(PARTITIONER, CHEAP)
  setting = dataclasses.replace(SETTING, batch_size=2**13)
  mesh = planner.mesh(topology)
  program = next(programs_lib.make_programs(setting, mesh))
  row = compiling.compile_program(program, topology.memory_bytes, CHEAP)
  assert not row['fits']
  assert row['peak_bytes'] > row['limit_bytes']


_ROOT = pathlib.Path(__file__).parents[2]
_COMMAND = (
  'plan',
  '--gin_file=gin/runs/plan.gin',
  '--gin_file=gin/models/t5_tiny.gin',
  '--gin_file=gin/rl/rloo.gin',
  '--gin.T5Config.num_encoder_layers=1',
  '--gin.T5Config.num_decoder_layers=1',
  '--gin.BATCH_SIZE=4',
  '--gin.NUM_SAMPLES=2',
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
  '--topology=v5e-4',
)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_plan_leaves_its_first_rows(
  number, tmp_path, monkeypatch, capsys
):
  output = tmp_path / 'plan.json'
  command = [*_COMMAND, f'--output={output}']
  with subprocess.Popen(
    [sys.executable, '-m', 'perlhf_jax', *command],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    printed = []
    while not printed or not printed[-1].startswith('reward_step'):
      printed.append(process.stdout.readline())
      assert printed[-1], process.stderr.read()
    process.send_signal(number)
    more, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert errors.splitlines()[-1].startswith('perlhf: interrupted; ')
  assert 'goes on' in errors
  # Neither libtpu's dump of the stack nor one of Python's.
  assert 'stack trace' not in errors and 'Traceback' not in errors
  rows = json.loads(output.read_text())
  assert rows and len(rows) < 8
  lines = ''.join(printed) + more
  assert lines.count('v5e-4\n') == 1 and 'arguments' in lines

  # The same command does not compile them again.
  def compile_program(program, limit_bytes, options):
    compiled.append(program.name)
    return {**rows[0], 'program': program.name}

  compiled = []
  monkeypatch.setattr(compiling, 'compile_program', compile_program)
  assert main.run(command) == 0
  assert len(compiled) == 8 - len(rows)
  assert 'of full' in capsys.readouterr().out
  assert json.loads(output.read_text())[: len(rows)] == rows


def test_only_gradients_of_adapters_go_from_slice_to_slice():
  topology = topologies.find('2xv5e-4')
  mesh = partitioning.Partitioner((2, -1, 1)).make_mesh(
    topologies.devices(topology)
  )
  program = (
    next(programs_lib.make_programs(SETTING, mesh)).lower().compile(dict(CHEAP))
  )
  # What leaves a slice is sent by the runtime that links slices.
  sends = [
    line
    for line in program.as_text().splitlines()
    if ' send(' in line and 'xla_megascale_runtime' in line
  ]
  sent = 0
  for line in sends:
    assert '_xla_megascale_transfer_type="ALL_REDUCE"' in line
    dtype, shape = re.search(r'= \((\w+)\[([\d,]+)\]', line).groups()
    item_bytes = {'bf16': 2, 'f32': 4}[dtype]
    sent += item_bytes * math.prod(map(int, shape.split(',')))
  # A and B of rank 8, of the four projections of six attentions.
  adapters = 6 * 4 * 2 * 1024 * 8
  assert 0 < sent * topology.num_devices <= 4 * adapters
