import os
import signal
import subprocess
import sys
import time

from etils import epath
import hosts_program
import metric_records
import numpy as np
import pytest

from perlhf_jax.training import preemption
from perlhf_jax.training import step_damage
from perlhf_jax.training import step_digests


def _tell():
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.1)  # Another thread notes it.


def test_sigterm_is_a_notice_inside_and_what_it_was_outside():
  seen = []
  outer = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
  try:
    with preemption.Notice() as notice:
      notice.ask()
      assert not notice.agreed()
      _tell()
      assert notice.agreed()
      _tell()  # The same notice, sent to the whole group of processes as well.
      assert notice.agreed()
    assert not seen
    _tell()
    assert seen == [1]
    with preemption.Notice() as notice:
      assert not notice.agreed()
  finally:
    signal.signal(signal.SIGTERM, outer)


_SECOND_NOTICE = """
import os, signal, time
from perlhf_jax.training import preemption

preemption._SAME_NOTICE_SECONDS = 0.1
with preemption.Notice():
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.3)
  print('still here', flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)
"""


def test_a_second_sigterm_ends_the_process_at_once():
  result = subprocess.run(
    [sys.executable, '-c', _SECOND_NOTICE],
    capture_output=True,
    text=True,
    timeout=50,
    check=False,
  )
  assert result.returncode == 128 + signal.SIGTERM, result.stderr
  assert result.stdout == 'still here\n'


@pytest.fixture(scope='module')
def preempted(tmp_path_factory):
  """Two processes, the second of which is told to stop, again and again."""
  folder = tmp_path_factory.mktemp('preempt')
  codes, errs = hosts_program.Pair(
    'preempt', f'--folder={folder}', '--number=1'
  ).end()
  return folder, codes, errs


def test_all_processes_stop_at_the_same_step(preempted):
  folder, codes, errs = preempted
  assert codes == [75, 75], errs
  for err in errs:
    last = err.splitlines()[-1]
    assert last.startswith('perlhf: stopped by SIGTERM; step 3 is saved in ')
    assert 'the same command again' in last
  assert [p.name for p in (folder / 'end/checkpoints').glob('[0-9]*')] == ['3']


def test_two_processes_go_on_to_the_bit(preempted):
  folder, _, errs = preempted
  # Of `parts`: before step 5 and before step 8, then to the end.
  assert 'step 5' not in errs[0]
  records = metric_records.without_timing(folder / 'parts')
  assert records == metric_records.without_timing(folder / 'whole')
  assert len(records) == hosts_program.STEPS + 3
  assert records[0]['step'] == 1
  np.testing.assert_array_equal(
    np.load(folder / 'parts/w.npy'), np.load(folder / 'whole/w.npy')
  )
  saved = [
    {p.name for p in (folder / name / 'checkpoints').iterdir() if p.is_dir()}
    for name in ('parts', 'whole')
  ]
  # Two beside the best, which is the last; a stop came behind step 5.
  assert saved == [{'5', '8', '12'}, {'4', '8', '12'}]
  for step in saved[0]:
    path = epath.Path(folder / 'parts' / 'checkpoints' / step)
    assert step_damage.damage_of(path, contents=True) is None
    assert step_digests.read(path).step == int(step)
    assert not list(path.glob('digests.process_*'))
