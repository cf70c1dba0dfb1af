import psutil
import pytest

from perlhf_jax.core import host_memory


@pytest.fixture
def container(tmp_path, monkeypatch):
  """Writes what a container's files say."""
  names = 'memory.max', 'memory.current', 'inactive_file'
  monkeypatch.setattr(host_memory, '_CGROUPS', ((str(tmp_path), *names),))

  def write(limit, usage, reclaimable):
    for name, text in zip(names, (limit, usage), strict=False):
      (tmp_path / name).write_text(f'{text}\n')
    stat = f'anon 5\ninactive_file {reclaimable}\n'
    (tmp_path / 'memory.stat').write_text(stat)

  return write


def test_a_machine_has_what_the_system_says(container):
  free = host_memory.free_bytes()  # There are no files yet.
  assert 0 < free <= psutil.virtual_memory().total
  container('max', 1000, 0)  # No limit.
  assert host_memory.free_bytes() > 1000


def test_a_container_has_its_limit(container):
  container(1000, 900, 300)
  assert host_memory.free_bytes() == 400
  container(1000, 1900, 300)
  assert host_memory.free_bytes() == 0


@pytest.mark.parametrize(
  ('count', 'text'),
  [(3 * 2**20, '3 MiB'), (2**29, '0.5 GiB'), (2**40, '1,024.0 GiB')],
)
def test_bytes_for_people(count, text):
  assert host_memory.gibibytes(count) == text
