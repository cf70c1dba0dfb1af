"""What this process runs, to be compared with other processes of the run."""

import hashlib
from importlib import metadata
import pathlib
import platform

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def describe() -> list[str]:
  """Gives a line a library: `jax: 0.10.2`."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.glob('**/*.py')):
    digest.update(path.read_bytes())
  return [
    f'perlhf: {_version("perlhf-jax")} (source {digest.hexdigest()[:12]})',
    f'python: {platform.python_version()}',
    *(f'{name}: {_version(name)}' for name in ('jax', 'jaxlib', 'libtpu')),
  ]


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return 'not installed'
