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
  log = step_log.StepLog(path, 2)
  log.append([{'step': 3}])
  assert _steps(path) == [1, 3]


def test_the_file_need_not_exist(path):
  step_log.StepLog(path, 7)
  assert path.read_text() == ''
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numbers_that_are_not_finite_are_null(path):
  step_log.StepLog(path, 0).append([{'step': 1, 'score': float('nan')}])
  assert path.read_text() == '{"step": 1, "score": null}\n'


@pytest.mark.parametrize(
  'line',
  [
    b'\0' * 40,
    b'{"step": 2, "spl',
    b'{"split": "train", "loss": 1.0}',
    b'{"step": "2"}',
    b'{"step": true}',
    b'{"step": 2, "loss": NaN}',
    b'[2]',
    b'{"step": 2, "text": "\xff"}',
    b'[' * 100_000,
  ],
)
def test_a_damaged_line_is_named_and_set_aside(path, line, caplog):
  path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
  log = step_log.StepLog(path, 3)
  log.append([{'step': 4}])
  assert _steps(path) == [1, 3, 4]
  assert log.records() == [{'step': 1}, {'step': 3}, {'step': 4}]
  aside = path.with_name('log.jsonl.damaged')
  assert aside.read_bytes() == line + b'\n'
  (record,) = caplog.records
  assert f'{path}: line 2 cannot be read' in record.getMessage()
  assert aside.name in record.getMessage()
  # Once.
  step_log.StepLog(path, 4)
  assert len(caplog.records) == 1


def test_many_damaged_lines_are_one_warning(path, caplog):
  path.write_bytes(b'\0\n' * 9 + b'{"step": 1}\n')
  step_log.StepLog(path, 1)
  assert _steps(path) == [1]
  (record,) = caplog.records
  assert 'line 1, 2, 3, 4, 5 and 4 more' in record.getMessage()


def test_what_somebody_removes_meanwhile_is_written_again(path, caplog):
  log = step_log.StepLog(path, 0)
  log.append([{'step': 1}])
  path.unlink()
  log.append([{'step': 2}])
  assert _steps(path) == [1, 2]
  path.write_text('')
  log.append([{'step': 3}])
  assert _steps(path) == [1, 2, 3]
  removed, changed = (record.getMessage() for record in caplog.records)
  assert f'{path} was removed by another program' in removed
  assert f'{path} was changed by another program' in changed


@pytest.mark.parametrize(
  ('left', 'said'),
  [
    (None, 'step 2, 4, 6'),
    ([2, 2, 4, 4, 6, 6], None),
    ([2, 2, 4], 'step 4, 6'),
    ([2, 4, 4, 6, 6], 'step 2'),
    ([1, 2, 3, 4, 5, 6], None),
  ],
)
def test_records_that_were_lost_are_named(path, left, said, caplog):
  if left is not None:
    path.write_text(''.join(f'{{"step": {step}}}\n' for step in left))
  log = step_log.StepLog(path, 7)
  log.warn_of_gaps(2)
  messages = [record.getMessage() for record in caplog.records]
  assert messages == (
    [
      f'{path} lacks records of {said}. They were lost, unless an earlier '
      'start wrote fewer. The run goes on without them.'
    ]
    if said
    else []
  )


def test_records_of_one_kind_are_looked_at_alone(path, caplog):
  log = step_log.StepLog(path, 0)
  log.append({'step': step, 'split': 'train', 'x': [1]} for step in (1, 2, 3))
  log.append([{'step': 2, 'split': 'eval'}])
  log = step_log.StepLog(path, 4)
  log.warn_of_gaps(1, split='train')
  log.warn_of_gaps(2, split='eval')
  assert len(caplog.records) == 2
  assert all('step 4.' in record.getMessage() for record in caplog.records)
  step_log.StepLog(path, 3).warn_of_gaps(1, split='train')
  assert len(caplog.records) == 2
