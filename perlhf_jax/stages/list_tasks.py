"""Lists the registered tasks and mixtures."""

from collections.abc import Mapping

from perlhf_jax.data import task_modules

_NOT_STATED = 'not stated'


def list_tasks(*, module: str | None = None) -> None:
  """Prints every task with its kind, splits, source, licence and files.

  Mixtures follow, each with its tasks and the rate at which each is drawn.

  Args:
    module: a module of yours that registers tasks.

  Raises:
    ConfigError: the module cannot be found or imported.
  """
  task_modules.import_tasks(module)
  unstated = []
  for task in task_modules.summaries():
    info = task.info
    kind = task.kind + ', images' * task.has_images
    if task.parts is not None:
      print(f'{task.name} (mixture; {kind}; {", ".join(task.splits)})')
      print(f'  draws:  {_shares(task.parts)}')
      continue
    print(f'{task.name} ({kind}; {", ".join(task.splits)})')
    description = f'{info.description}; ' if info.description else ''
    print(f'  {description}licence: {info.licence or _NOT_STATED}')
    print(f'  source: {info.homepage or _NOT_STATED}')
    print(f'  files:  {task.location}')
    if not (info.licence and info.homepage):
      unstated.append(task.name)
  if unstated:
    print(
      f'\nNot stated: the source or the licence of {", ".join(unstated)}. State'
      " them with source='...' and licence='...' of add_preference_task."
    )


def _shares(parts: Mapping[str, float | str]) -> str:
  """Returns the parts of a mixture, with their shares or how these are set."""
  numbers = [rate for rate in parts.values() if isinstance(rate, float)]
  total = sum(numbers) if len(numbers) == len(parts) else 0
  return ', '.join(
    f'{name} {rate / total:.1%}' if total else f'{name} (rate {rate})'
    for name, rate in parts.items()
  )
