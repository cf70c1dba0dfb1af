import json

from etils import epath
import pytest

from perlhf_jax.training import step_log


def _steps(path):
  return [json.loads(line)['step'] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
  return epath.Path(tmp_path) / 'log.jsonl'


def test_records_are_appended_in_order(path):
  log = step_log.StepLog(path, 0)
  log.append([{'step': 1, 'text': 'é "quoted"\nand more'}, {'step': 1}])
  log.append([{'step': 2}])
  assert _steps(path) == [1, 1, 2]
  first = path.read_text().splitlines()[0]
  assert json.loads(first)['text'] == 'é "quoted"\nand more'
  assert 'é' in first


def test_a_new_run_begins_with_an_empty_file(path):
  path.write_text('{"step": 1}\n')
  step_log.StepLog(path, 0)
  assert path.read_text() == ''


def test_a_resumed_run_drops_what_it_makes_again(path):
  step_log.StepLog(path, 0).append({'step': s} for s in (1, 2, 2, 3, 4))
  log = step_log.StepLog(path, 2)
  assert _steps(path) == [1, 2, 2]
  log.append([{'step': 3}])
  assert _steps(path) == [1, 2, 2, 3]


@pytest.mark.parametrize('tail', ['{"step": 2, "te', '{"step": 2}'])
def test_a_line_cut_short_by_a_kill_is_dropped(path, tail):
  path.write_text('{"step": 1}\n' + tail)
  assert step_log.read_lines(path) == ['{"step": 1}']
  log = step_log.StepLog(path, 2)
  log.append([{'step': 3}])
  assert _steps(path) == [1, 3]


def test_the_file_need_not_exist(path):
  assert step_log.read_lines(path) == []
  step_log.StepLog(path, 7)
  assert path.read_text() == ''
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numbers_that_are_not_finite_are_null(path):
  step_log.StepLog(path, 0).append([{'step': 1, 'score': float('nan')}])
  assert path.read_text() == '{"step": 1, "score": null}\n'
