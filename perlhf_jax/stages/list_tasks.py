"""Lists the registered tasks."""

from perlhf_jax.data import task_modules


def list_tasks(*, module: str | None = None) -> None:
  """Prints every task with its kind, splits, source, licence and files.

  Args:
    module: a module to import first, which registers tasks.

  Raises:
    ConfigError: the module cannot be found.
  """
  task_modules.import_tasks(module)
  for task in task_modules.summaries():
    info = task.info
    kind = task.kind + ', images' * task.has_images
    print(f'{task.name} ({kind}; {", ".join(task.splits)})')
    print(f'  {info.description}; licence: {info.licence}')
    print(f'  source: {info.homepage}')
    print(f'  files:  {task.location}')
