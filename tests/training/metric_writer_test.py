import json
import math

from etils import epath
import pytest

from perlhf_jax.training import metric_writer


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path)


def _records(folder):
  text = (folder / 'metrics.jsonl').read_text()
  assert text == '' or text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def test_one_line_a_record(folder):
  writer = metric_writer.MetricWriter(folder, 0)
  writer.write(10, 'train', {'loss': 1.5, 'accuracy': 1})
  writer.write(10, 'eval', {'roc_auc': math.nan, 'loss': math.inf})
  # Each is on disk before close: a kill loses nothing.
  assert _records(folder) == [
    {'step': 10, 'split': 'train', 'loss': 1.5, 'accuracy': 1.0},
    {'step': 10, 'split': 'eval', 'roc_auc': None, 'loss': None},
  ]
  writer.close()
  for split in ('train', 'eval'):
    assert list((folder / 'events' / split).iterdir())


def test_resuming_drops_steps_that_will_be_made_again(folder):
  writer = metric_writer.MetricWriter(folder, 0)
  for step in (10, 20, 30):
    writer.write(step, 'train', {'loss': float(step)})
    writer.write(step, 'eval', {'loss': float(step)})
  writer.close()
  resumed = metric_writer.MetricWriter(folder, 20)
  assert [r['step'] for r in _records(folder)] == [10, 10, 20, 20]
  resumed.write(30, 'train', {'loss': 0.0})
  resumed.close()
  assert _records(folder)[-1] == {'step': 30, 'split': 'train', 'loss': 0.0}
  assert len(_records(folder)) == 5


def test_a_new_run_starts_afresh(folder):
  (folder / 'metrics.jsonl').write_text('{"step": 5, "split": "train"}\n')
  metric_writer.MetricWriter(folder, 0).close()
  assert _records(folder) == []


def test_a_last_line_that_a_kill_cut_short_is_left_out(folder):
  whole = '{"step": 5, "split": "train", "loss": 1.0}\n'
  (folder / 'metrics.jsonl').write_text(whole + '{"step": 6, "spl')
  writer = metric_writer.MetricWriter(folder, 6)
  writer.write(7, 'train', {'loss': 2.0})
  writer.close()
  assert [r['step'] for r in _records(folder)] == [5, 7]


def test_what_is_read_first_comes_first():
  metrics = {'entropy': 3, 'kl_k1': 2, 'loss': math.nan, 'score': 1, 'zeal': 4}
  ordered = metric_writer.in_order(metrics)
  assert list(ordered) == ['score', 'kl_k1', 'loss', 'entropy', 'zeal']
  assert ordered == metrics
  names = list(metric_writer.in_order({'token_accuracy': 1, 'loss': 2}))
  assert names == ['loss', 'token_accuracy']
