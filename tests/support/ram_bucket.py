"""A bucket that needs no network: TensorFlow's file system in memory.

`etils.epath` reads `gs://` through TensorFlow, and knows no scheme of the kind
that is offline. Here it learns `ram://`, which takes the same way.
"""

from etils.epath import backend
from etils.epath import gpath
from etils.epath import register

COPY_FOLDER = 'copies'


def mount(monkeypatch, tmp_path):
  """Teaches epath `ram://`, and has copies made in a folder of a test."""
  schemes = {*gpath._URI_SCHEMES, 'ram'}
  monkeypatch.setattr(gpath, '_URI_SCHEMES', schemes)
  monkeypatch.setattr(
    gpath, '_URI_PREFIXES', tuple(f'{scheme}://' for scheme in schemes)
  )
  monkeypatch.setitem(gpath._URI_MAP_ROOT, 'ram://', '/ram/')
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'ram', backend.tf_backend)
  monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, 'ram://', gpath.PosixGPath)
  monkeypatch.setattr(backend.tf_backend, 'exists', _exists)
  (tmp_path / COPY_FOLDER).mkdir()
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / COPY_FOLDER))


def _exists(path):
  # In memory, TensorFlow takes what a file's name begins with for a file too.
  gfile = backend.tf_backend.gfile
  folder, _, name = str(path).rpartition('/')
  return gfile.isdir(folder) and name in gfile.listdir(folder)


def upload(source, address):
  """Puts a local directory's files into the bucket, replacing its own."""
  gfile = backend.tf_backend.gfile
  if gfile.exists(address):
    gfile.rmtree(address)
  gfile.makedirs(address)
  for path in source.iterdir():
    write(f'{address}/{path.name}', path.read_bytes())


def write(address, content):
  """Writes one file; TensorFlow would append to one that is there."""
  gfile = backend.tf_backend.gfile
  if gfile.exists(address):
    gfile.remove(address)
  with gfile.GFile(address, 'wb') as file:
    file.write(content)


def copies(tmp_path):
  """Lists what lies in the folder of copies."""
  return sorted((tmp_path / COPY_FOLDER).glob('*/*/'))
