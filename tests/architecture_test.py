"""Tests that the code keeps to its own plan: floors, sizes, imports."""

import ast
import pathlib
import statistics
import subprocess
import sys

import longest_files
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A file imports from lower floors and from its own folder only.
FLOORS = {
  'core': 0,
  'objectives': 1,
  'data': 1,
  'models': 2,
  'training': 3,
  'sampling': 3,
  'interop': 3,
  'checkpoints': 4,
  'runs': 5,
  'rl': 5,
  'stages': 6,
  'benchmark': 7,
  'plan': 7,
  'report': 7,
}
TOP_FLOOR = 8  # The files of perlhf_jax/ itself.
CLI_FLOOR = 9
# A sweep runs command lines, and checks them as the command line does.
FLOORS['sweep'] = 10
# What starts Python's -m, which only calls the command line.
DOOR = 'perlhf_jax/__main__.py'

TENSORFLOW = {
  'seqio',
  'tensorflow',
  'tensorflow_datasets',
  'tensorflow_text',
  'tensorboard',
  't5',
  'clu',
}
# clu imports TensorFlow: allowed inside a function of this file only.
LAZY_CLU = {'perlhf_jax/training/metric_writer.py'}
LINEN_OUTSIDE_MODELS = {
  'perlhf_jax/training/partitioning.py',
  # T5X reads the names of axes there.
  'perlhf_jax/interop/t5x_models.py',
}
# T5X is an extra, and imports TensorFlow.
T5X = {'perlhf_jax/interop/t5x_models.py'}


def _files(*folders):
  return sorted(
    path for folder in folders for path in (ROOT / folder).glob('**/*.py')
  )


LIBRARY = _files('perlhf_jax')
TASKS = _files('tasks')
EVERYTHING = [*LIBRARY, *TASKS, *_files('tests', 'launch'), ROOT / 'setup.py']
NAMES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
  for path in [*LIBRARY, *TASKS]
}


def _name(path):
  return path.relative_to(ROOT).as_posix()


def _folder(path):
  """The folder of a floor, which may have folders of its own."""
  first, *rest = path.relative_to(ROOT / 'perlhf_jax').parts
  return first if rest else ''


def _floor(path):
  folder = _folder(path)
  if folder == 'cli':
    return CLI_FLOOR
  if not folder:
    return CLI_FLOOR + 1 if _name(path) == DOOR else TOP_FLOOR
  assert folder in FLOORS, f'{_name(path)}: on which floor is {folder}/?'
  return FLOORS[folder]


def _imports(path):
  """Yields (module or module.name, whether inside a function, line)."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  in_functions = {
    id(node)
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    for node in ast.walk(function)
  }
  for node in ast.walk(tree):
    is_lazy = id(node) in in_functions
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, is_lazy, node.lineno
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{_name(path)}:{node.lineno}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', is_lazy, node.lineno


def _own_imports(path):
  """Yields (imported file of ours, line)."""
  for module, _, line in _imports(path):
    # `from perlhf_jax.core.typing import Array` names something in a module.
    for name in module, module.rpartition('.')[0]:
      if name in NAMES:
        yield NAMES[name], line
        break
    else:
      assert module.split('.')[0] not in ('perlhf_jax', 'tasks'), (
        f'{_name(path)}:{line}: there is no {module}'
      )


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_imports_go_down_the_floors(path):
  for imported, line in _own_imports(path):
    where = f'{_name(path)}:{line} imports {_name(imported)}'
    assert imported.is_relative_to(ROOT / 'perlhf_jax'), where
    is_same_folder = _folder(imported) == _folder(path)
    assert is_same_folder or _floor(imported) < _floor(path), where


def test_no_cycle():
  graph = {
    path: {imported for imported, _ in _own_imports(path)}
    for path in [*LIBRARY, *TASKS]
  }
  done = set()

  def visit(path, trail):
    cycle = ' -> '.join(map(_name, [*trail, path]))
    assert path not in trail, f'cycle: {cycle}'
    if path not in done:
      for imported in graph[path]:
        visit(imported, [*trail, path])
      done.add(path)

  for path in graph:
    visit(path, [])


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_tensorflow_stays_in_data(path):
  if path.is_relative_to(ROOT / 'perlhf_jax/data'):
    return
  for module, is_lazy, line in _imports(path):
    package = module.split('.')[0]
    if package == 'clu' and is_lazy and _name(path) in LAZY_CLU:
      continue
    assert package not in TENSORFLOW, f'{_name(path)}:{line}: {module}'


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_t5x_stays_in_a_file_that_nobody_imports(path):
  for module, _, line in _imports(path):
    if _name(path) not in T5X:
      assert module.split('.')[0] != 't5x', f'{_name(path)}:{line}: {module}'
  for imported, line in _own_imports(path):
    assert _name(imported) not in T5X, f'{_name(path)}:{line}: {imported}'


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_linen_stays_in_models(path):
  if path.is_relative_to(ROOT / 'perlhf_jax/models'):
    return
  if _name(path) in LINEN_OUTSIDE_MODELS:
    return
  for module, _, line in _imports(path):
    assert not f'{module}.'.startswith('flax.linen.'), f'{_name(path)}:{line}'


@pytest.mark.parametrize('path', TASKS, ids=_name)
def test_tasks_import_core_and_data_only(path):
  allowed = [ROOT / 'perlhf_jax/core', ROOT / 'perlhf_jax/data', ROOT / 'tasks']
  for imported, line in _own_imports(path):
    assert any(map(imported.is_relative_to, allowed)), f'{_name(path)}:{line}'


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_absl_parses_the_only_flags(path):
  is_top = _floor(path) >= TOP_FLOOR
  for module, _, line in _imports(path):
    where = f'{_name(path)}:{line}'
    assert module.split('.')[0] not in ('argparse', 'getopt', 'fire'), where
    assert is_top or module not in ('absl.flags', 'absl.app'), where


@pytest.mark.parametrize('path', EVERYTHING, ids=_name)
def test_file_is_short_and_says_what_it_is(path):
  num_lines = len(path.read_text(encoding='utf-8').splitlines())
  assert num_lines <= 500
  assert path.stem not in ('utils', 'util', 'common', 'helpers', 'misc')


def test_half_of_the_files_are_shorter_than_200_lines():
  lengths = [len(path.read_text('utf-8').splitlines()) for path in LIBRARY]
  assert statistics.median(lengths) < 200


@pytest.mark.parametrize('path', LIBRARY, ids=_name)
def test_package_files_hold_a_docstring_only(path):
  # The package itself has `perlhf_jax.load`.
  if path.name == '__init__.py' and path.parent.name != 'perlhf_jax':
    body = ast.parse(path.read_text(encoding='utf-8')).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_test_files_have_names_of_their_own():
  # Pytest imports them by name, whatever their folder is.
  names = [path.name for path in (ROOT / 'tests').glob('**/*_test.py')]
  assert len(names) == len(set(names))


def test_every_folder_is_a_package():
  for path in [*LIBRARY, *TASKS]:
    assert (path.parent / '__init__.py').exists(), _name(path)


def test_gin_is_no_package():
  # `import gin` must find the library, not our folder of gin files.
  assert not list((ROOT / 'gin').glob('**/*.py'))


def _modules_after_importing(modules):
  code = ';'.join(
    [
      'import sys',
      *(f'import {name}' for name in modules),
      'print(*sys.modules)',
    ]
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return {name.split('.')[0] for name in result.stdout.split()}


def test_core_runs_without_tensorflow():
  core = [
    name
    for name, path in NAMES.items()
    if path in LIBRARY
    and _floor(path) < FLOORS['stages']
    and path.parent.name not in ('data', 'interop')
    and path.name != '__init__.py'
  ]
  assert 'perlhf_jax.objectives.losses' in core
  assert not _modules_after_importing(core) & TENSORFLOW


def test_the_command_line_is_instant():
  loaded = _modules_after_importing(['perlhf_jax', 'perlhf_jax.cli.main'])
  assert not loaded & {*TENSORFLOW, 'jax', 'flax', 'optax', 'orbax', 'numpy'}


# Of our own processes' and runs' files, which nobody else writes.
_OWN_JSON = {
  'perlhf_jax/core/strict_json.py',
  'perlhf_jax/cli/supervision.py',
}
# Annotations of our own functions, in our own files.
_OWN_EVAL = 'perlhf_jax/cli/flags.py'
_UNSAFE = {'pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'}


@pytest.mark.parametrize('path', [*LIBRARY, *TASKS], ids=_name)
def test_files_are_read_as_data(path):
  tree = ast.parse(path.read_text(encoding='utf-8'))
  called = {
    ast.unparse(node.func): node.lineno
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
  }
  for name in 'json.loads', 'json.load':
    assert name not in called or _name(path) in _OWN_JSON, (
      f'{_name(path)}:{called[name]}: strict_json bounds what {name} does not'
    )
  for name in 'eval', 'exec', 'os.system', 'yaml.load', 'pickle.load':
    is_own = name == 'eval' and _name(path) == _OWN_EVAL
    assert is_own or name not in called, f'{_name(path)}:{name}'
  for module, _, line in _imports(path):
    assert module.partition('.')[0] not in _UNSAFE, f'{_name(path)}:{line}'


def test_the_longest_files_are_there():
  # A file that was renamed would begin last, and be waited for.
  tests = pathlib.Path(__file__).parent
  for name in longest_files.LONGEST_FIRST:
    assert (tests / name).exists(), name
