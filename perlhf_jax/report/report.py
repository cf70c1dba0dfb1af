"""Writes one HTML page about a run, the runs of a folder, or a sweep."""

import importlib.util

from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.report import page as page_lib
from perlhf_jax.report import rendering
from perlhf_jax.report import run_files
from perlhf_jax.report import run_page
from perlhf_jax.report import sweep_file
from perlhf_jax.report import sweep_page
from perlhf_jax.report import values
from perlhf_jax.stages import line_files
from perlhf_jax.training import step_files

FILE_NAME = 'report.html'
_DEMO = 'demo.json'
# Of a folder of runs.
_MAX_RUNS = 16
_LIBRARIES = 'jinja2', 'matplotlib'


def report(*, model_dir: str, output_path: str | None = None) -> None:
  """Writes a page with curves, tables and samples, which needs no network.

  Args:
    model_dir: a MODEL_DIR, also of a run that has not ended; a folder of runs,
      such as the demo's; or the folder of a sweep.
    output_path: the file to write; by default report.html in that folder.

  Raises:
    ConfigError: the libraries of the extra `report` are missing, or the file
      cannot be written.
    CheckpointError: the folder holds no run, or a file cannot be used.
  """
  # It computes nothing; an accelerator may be another command's.
  jax.config.update('jax_platforms', 'cpu')
  _check_libraries()
  folder = step_files.absolute(model_dir)
  output = output_path or str(folder / FILE_NAME)
  if output_path or folder.is_dir():
    line_files.check_output(output)
  content = rendering.to_html(make_page(folder))
  line_files.write_text(output, [content])
  size = len(content.encode()) / 2**20
  print(f'Wrote {output} ({size:.1f} MiB): open it in a browser.')


def make_page(folder: epath.Path) -> page_lib.Page:
  """Reads a folder and returns its page.

  Args:
    folder: absolute.

  Raises:
    CheckpointError: see `report`.
  """
  if (folder / sweep_file.FILE_NAME).exists():
    sweep = sweep_file.read(folder / sweep_file.FILE_NAME)
    return sweep_page.make(sweep, folder.name)
  if run_files.is_model_dir(folder):
    return run_page.of_one(run_files.read(folder))
  found = sorted(folder.iterdir()) if folder.is_dir() else []
  runs = [each for each in found if run_files.is_model_dir(each)]
  if not runs:
    raise errors.CheckpointError(
      f'{folder} {"holds no run" if found else "is empty or no folder"}. Give '
      'a MODEL_DIR of a training command, a folder of such, as launch/demo.sh '
      f'makes it, or the folder of a sweep, with {sweep_file.FILE_NAME}.'
    )
  notes: list[str] = []
  demo = run_files.object_if_there(folder / _DEMO, notes)
  if left_out := [each.name for each in runs[_MAX_RUNS:]]:
    names = values.shortened(', '.join(left_out), 300)
    notes.append(f'Only the first {_MAX_RUNS} runs are shown, without {names}.')
  members = [*map(run_files.read, runs[:_MAX_RUNS])]
  return run_page.of_several(members, folder.name, demo, notes)


def _check_libraries() -> None:
  missing = [
    name for name in _LIBRARIES if importlib.util.find_spec(name) is None
  ]
  if missing:
    raise errors.ConfigError(
      f'perlhf report needs {" and ".join(missing)}: pip install '
      "'perlhf-jax[report]'."
    )
