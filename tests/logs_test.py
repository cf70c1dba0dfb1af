import re
import subprocess
import sys

CODE = """
from absl import logging
from perlhf_jax import logs

logs.silence_native_libraries()
logs.show()
source = '''
logging.info('info of {0}')
logging.warning('warning of {0}')
'''
for path in (
  logs.__file__,
  '/home/me/my_tasks.py',
  '/home/me/.venv/lib/site-packages/orbax/checkpoint.py',
):
  exec(compile(source.format(path), path, 'exec'))
"""


def test_our_lines_and_others_warnings_are_shown():
  result = subprocess.run(
    [sys.executable, '-c', CODE], capture_output=True, text=True, check=True
  )
  assert result.stdout == ''
  ours, our_warning, users, users_warning, others_warning = (
    result.stderr.splitlines()
  )
  assert re.fullmatch(r'\d\d:\d\d:\d\d info of .*logs\.py', ours)
  assert re.fullmatch(r'[\d:]{8} WARNING: warning of .*logs\.py', our_warning)
  assert users.endswith('info of /home/me/my_tasks.py')
  assert users_warning.endswith('WARNING: warning of /home/me/my_tasks.py')
  assert 'WARNING: warning of' in others_warning
  assert 'orbax' in others_warning


ORBAX_CODE = """
from absl import logging
from perlhf_jax import logs

logs.show()
source = '''
try:
  1 / 0
except ZeroDivisionError:
  logging.exception('a save failed')
logging.error('a plain error')
'''
path = '/home/me/.venv/lib/site-packages/orbax/checkpoint/future.py'
exec(compile(source, path, 'exec'))
"""


def test_tracebacks_of_errors_that_orbax_raises_too_are_not_shown():
  result = subprocess.run(
    [sys.executable, '-c', ORBAX_CODE],
    capture_output=True,
    text=True,
    check=True,
  )
  (line,) = result.stderr.splitlines()
  assert line.endswith('ERROR: a plain error')


PROCESS_CODE = """
from absl import logging
from perlhf_jax import logs

logs.show()
logs.show_process({0})
logging.info('an info line')
logging.warning('a warning')
print('an answer')
"""


INCLUDE_CODE = """
import os
import gin
from perlhf_jax import logs

logs.show()
gin.add_config_file_search_path({folder!r})
gin.parse_config("include 'gin/models/size.gin'")
print(gin.query_parameter('%SIZE'))
"""


def test_gins_search_for_an_included_file_is_no_error(tmp_path):
  (tmp_path / 'gin' / 'models').mkdir(parents=True)
  (tmp_path / 'gin' / 'models' / 'size.gin').write_text('SIZE = 3')
  result = _run(INCLUDE_CODE.format(folder=str(tmp_path)))
  assert result.stdout == '3\n'
  assert result.stderr == ''


def test_the_first_of_several_processes_says_everything():
  result = _run(PROCESS_CODE.format(0))
  assert result.stdout == 'an answer\n'
  info, _ = result.stderr.splitlines()
  assert re.fullmatch(r'[\d:]{8} an info line', info)


def test_other_processes_say_what_is_wrong():
  result = _run(PROCESS_CODE.format(3))
  assert result.stdout == ''
  assert re.fullmatch(r'\[3\] [\d:]{8} WARNING: a warning\n', result.stderr)


def _run(code):
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )


NOISE_CODE = """
import os
from perlhf_jax import logs

try:
  with logs.without_noise():
    os.write(2, b'WARNING: All log messages before absl::InitializeLog() is\\n')
    os.write(2, b'I0000 00:00:1795365783.2 1 port.cc:153] oneDNN is on\\n')
    os.write(2, b'E0000 00:00:1795365783.2 1 port.cc:153] something broke\\n')
    print('a line of ours', file=__import__('sys').stderr)
    raise ValueError
except ValueError:
  os.write(2, b'I0000 after the block\\n')
"""


def test_what_tensorflow_prints_on_import_is_dropped_and_nothing_else():
  result = subprocess.run(
    [sys.executable, '-c', NOISE_CODE],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stderr.splitlines() == [
    'E0000 00:00:1795365783.2 1 port.cc:153] something broke',
    'a line of ours',
    'I0000 after the block',
  ]


PROGRAM = """
from perlhf_jax import logs

{0}
from absl import logging
import os

exec(compile('logging.info("step 1 of 2"); logging.warning("a warning")',
             logs.__file__, 'exec'))
print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))
"""


def test_a_program_of_ones_own_shows_lines_when_it_asks_for_them(monkeypatch):
  monkeypatch.delenv('TF_CPP_MIN_LOG_LEVEL', raising=False)
  silent = _run(PROGRAM.format(''))
  assert 'step 1 of 2' not in silent.stderr
  assert 'a warning' in silent.stderr
  assert silent.stdout == 'None\n'
  for calls in 'logs.show()', 'logs.show(); logs.show()':
    result = _run(PROGRAM.format(calls))
    info, warning = result.stderr.splitlines()
    assert re.fullmatch(r'[\d:]{8} step 1 of 2', info)
    assert re.fullmatch(r'[\d:]{8} WARNING: a warning', warning)
    assert result.stdout == '3\n'


LOOP_CODE = """
import asyncio, gc, sys
from perlhf_jax import logs

logs.show()

async def begin(fail):
  task = asyncio.ensure_future(fail())
  await asyncio.sleep(0)

for path in '/site-packages/orbax/checkpoint/serialization.py', 'mine.py':
  names = {}
  text = f'async def fail(): raise ValueError({path!r})'
  exec(compile(text, path, 'exec'), names)
  asyncio.run(begin(names['fail']))
  gc.collect()

async def wait():
  asyncio.get_running_loop().create_future().set_exception(ValueError(
    'RESOURCE_EXHAUSTED: Error opening "zarr" driver: Failed to write 9 bytes '
    'to file 8: No space left on device []'
  ))

asyncio.run(wait())
gc.collect()

class Last:
  def __init__(self, act):
    self.act = act
  def __del__(self):
    self.act()

loop = asyncio.new_event_loop()
loop.close()
last = Last(lambda: loop.call_soon_threadsafe(print))
del last
print('both are over', file=sys.stderr)
last = Last(lambda: {}['a fault of ours'])
del last
"""


def test_what_follows_a_failed_write_is_not_shown():
  """Orbax raises the failure; these lines would hide its message."""
  result = subprocess.run(
    [sys.executable, '-c', LOOP_CODE],
    capture_output=True,
    text=True,
    check=False,
  )
  before, _, after = result.stderr.partition('both are over\n')
  assert "ValueError('mine.py')" in before and 'orbax' not in before
  assert 'zarr' not in before
  assert before.count('Traceback') == 1 and 'closed' not in before
  assert 'Traceback' in after and 'a fault of ours' in after
