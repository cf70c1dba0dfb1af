import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).parents[2] / 'launch/demo_table.py'


def _demo_table():
  spec = importlib.util.spec_from_file_location('demo_table', _PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_a_figure_that_was_lost_is_said_to_be(capsys):
  rows = {
    'lora': {'kl_k1': 1.5, 'seconds_per_step': 0.2, 'step_memory_bytes': None},
    'full': {
      'kl_k1': 3.0,
      'seconds_per_step': None,
      'step_memory_bytes': 2**20,
    },
  }
  table = _demo_table()
  table.print_table('policy', rows, table._POLICY_COLUMNS)
  lines = capsys.readouterr().out.splitlines()
  cells = {line[:22].strip(): line[22:].split() for line in lines}
  assert cells['KL to SFT (k1, nats)'] == ['1.50', '3.00', '0.50']
  assert cells['seconds/step'] == ['0.200', 'unknown', '-']
  assert cells['step memory'] == ['unknown', '1.0', 'MiB', '-']


def test_dpo_has_a_column_where_it_was_run(capsys):
  rows = {
    'lora': {'kl_k1': 1.5},
    'full': {'kl_k1': 3.0},
    'dpo': {'kl_k1': 2.0},
  }
  table = _demo_table()
  table.print_table('policy', rows, table._POLICY_COLUMNS[1:2])
  lines = capsys.readouterr().out.splitlines()
  assert lines[1].split() == [
    'policy',
    'LoRA',
    'full',
    'LoRA/full',
    'DPO,',
    'LoRA',
  ]
  assert lines[2][22:].split() == ['1.50', '3.00', '0.50', '2.00']
