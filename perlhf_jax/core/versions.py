"""Versions of the software, for records of a run and to compare processes."""

import hashlib
from importlib import metadata
import pathlib
import platform

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_LIBRARIES = (
  'jax',
  'jaxlib',
  'libtpu',
  'flax',
  'optax',
  'orbax-checkpoint',
)


def describe() -> dict[str, str]:
  """Returns versions by name: `{'jax': '0.10.2', …}`.

  The version of `perlhf_jax` includes a digest of its source, which
  distinguishes modified copies.
  """
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.glob('**/*.py')):
    digest.update(path.read_bytes())
  source = f'source {digest.hexdigest()[:12]}'
  return {
    'perlhf_jax': f'{_version("perlhf-jax")} ({source})',
    'python': platform.python_version(),
    **{name: _version(name) for name in _LIBRARIES},
  }


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return 'not installed'
