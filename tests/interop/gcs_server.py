"""A bucket `gs://` in this process: its objects are files of a folder.

TensorStore asks a web server that speaks as much of Google's API as reading
needs; `etils.epath`, which would ask TensorFlow, reads the files.
"""

import http.server
import pathlib
import threading
import urllib.parse

from etils.epath import backend
from etils.epath import gpath

BUCKET = 'gs://bucket'
_OBJECTS = '/storage/v1/b/bucket/o/'


class _Backend:
  """The local file system under another name."""

  def __init__(self, root):
    self._root = root

  def __getattr__(self, name):
    function = getattr(backend.os_backend, name)

    def mapped(path, *arguments, **keywords):
      assert path.startswith(BUCKET), path
      return function(
        str(self._root) + path.removeprefix(BUCKET), *arguments, **keywords
      )

    return mapped


def mount(monkeypatch, root):
  """Serves a folder as the bucket.

  Returns the server, to be shut down, and the list of names it was asked for.
  """
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      path = urllib.parse.urlsplit(self.path).path
      name = urllib.parse.unquote(path.removeprefix(_OBJECTS))
      asked.append(name)
      file = pathlib.Path(root, name)
      if not path.startswith(_OBJECTS) or not file.is_file():
        self._answer(404, b'')
        return
      content = file.read_bytes()
      part = self.headers.get('Range')
      if part is None:
        self._answer(200, content)
        return
      first, last = part.removeprefix('bytes=').split('-')
      start = int(first) if first else max(0, len(content) - int(last))
      stop = int(last) + 1 if first and last else len(content)
      self._answer(
        206,
        content[start:stop],
        ('Content-Range', f'bytes {start}-{stop - 1}/{len(content)}'),
      )

    def _answer(self, code, content, *headers):
      self.send_response(code)
      for header in (
        *headers,
        ('x-goog-generation', '1'),
        ('Content-Length', str(len(content))),
      ):
        self.send_header(*header)
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv(
    'TENSORSTORE_GCS_HTTP_URL', f'http://127.0.0.1:{server.server_port}'
  )
  monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')
  monkeypatch.setattr(gpath.backend_lib, 'tf_backend', _Backend(root))
  return server, asked
