import sys
import types

import pytest
import seqio

from perlhf_jax.core import errors
from perlhf_jax.data import task_modules


@pytest.fixture
def module_dir(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  before = set(seqio.TaskRegistry.names())
  yield tmp_path
  for name in set(seqio.TaskRegistry.names()) - before:
    seqio.TaskRegistry.remove(name)


def test_built_in_tasks_are_registered_with_their_source():
  task_modules.import_tasks()
  task_modules.import_tasks()  # A second time is harmless.
  summaries = {summary.name: summary for summary in task_modules.summaries()}
  for name, kind in {
    'demo_sft': 'sft',
    'demo_rm': 'pairwise',
    'demo_rm_pointwise': 'pointwise',
    'demo_prompts': 'prompts',
    'taskmaster_coffee_rm': 'pointwise',
    'taskmaster_ticketing_sft': 'sft',
    'taskmaster_ticketing_prompts': 'prompts',
    'hh_harmless_rm': 'pairwise',
    'hh_helpful_sft': 'sft',
  }.items():
    assert summaries[name].kind == kind
    assert summaries[name].splits == ('train', 'validation', 'test')
    assert summaries[name].info.licence
    assert summaries[name].info.homepage
    assert summaries[name].location


def test_a_module_of_the_user_registers_tasks(module_dir):
  (module_dir / 'my_toy_tasks.py').write_text(
    'from perlhf_jax.data import preference_tasks\n'
    "preference_tasks.add_preference_task('my_toy', 'sft', dict, 'x.jsonl')\n"
  )
  task_modules.import_tasks('my_toy_tasks')
  assert task_modules.find('my_toy').name == 'my_toy'


def test_a_module_that_is_not_there_is_named():
  for module in ('no_such_tasks', 'no_such.tasks', 'tasks.nothing'):
    with pytest.raises(errors.ConfigError, match=f'{module}.*PYTHONPATH'):
      task_modules.import_tasks(module)


def test_a_module_that_lacks_a_dependency_says_which(module_dir):
  (module_dir / 'needy_tasks.py').write_text('import no_such_dependency\n')
  with pytest.raises(
    errors.ConfigError, match=r"needy_tasks.*'no_such_dependency'"
  ):
    task_modules.import_tasks('needy_tasks')


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('def f(:\n', r'SyntaxError: .* \(.*broken_tasks.py:1: def f'),
    ('a = 1\nb\n', r"NameError: name 'b' .* \(.*broken_tasks.py:2, in <mod"),
    ('import sys\nsys.exit(3)\n', r'SystemExit: 3 \(.*py:2'),
    ('from json import no_such\n', r'ImportError: .*no_such.*py:1'),
    (
      'from perlhf_jax.data import preference_tasks\n'
      "preference_tasks.add_preference_task('demo_sft', 'sft', dict, 'x')\n",
      r"already a task 'demo_sft'.*\(.*broken_tasks.py:2, in <module>",
    ),
  ],
)
def test_a_module_with_a_mistake_names_its_line(module_dir, text, wanted):
  (module_dir / 'broken_tasks.py').write_text(text)
  with pytest.raises(errors.ConfigError, match=wanted):
    task_modules.import_tasks('broken_tasks')


@pytest.mark.parametrize(
  ('given', 'near'),
  [
    ('my_tsks', 'my_tasks'),
    ('near_tasks.py', 'near_tasks'),
    ('sub/near_tasks', 'sub.near_tasks'),
  ],
)
def test_near_modules_are_suggested(module_dir, monkeypatch, given, near):
  (module_dir / 'my_tasks.py').write_text('')
  monkeypatch.chdir(module_dir)
  wanted = rf'cannot be found\. Did you mean {near}\? Put the'
  with pytest.raises(errors.ConfigError, match=wanted):
    task_modules.import_tasks(given)


def test_another_package_named_tasks_is_found_out(monkeypatch):
  impostor = types.ModuleType('tasks')
  impostor.__file__ = '/elsewhere/tasks/__init__.py'
  monkeypatch.setitem(sys.modules, 'tasks', impostor)
  with pytest.raises(errors.ConfigError, match='/elsewhere/tasks'):
    task_modules.import_tasks()


def test_near_names_are_suggested():
  task_modules.import_tasks()
  with pytest.raises(errors.ConfigError, match=r'Did you mean.*demo_rm'):
    task_modules.find('demo_mr')
  with pytest.raises(errors.ConfigError, match='MIXTURE_OR_TASK_MODULE'):
    task_modules.find('demo_mr')
  with pytest.raises(errors.ConfigError, match=r'Registered are.*hh_harmless'):
    task_modules.find('zzzzzz')
