"""Imports the modules that register tasks, and looks tasks up.

The built-in tasks are in the package `tasks`, next to `perlhf_jax`.
MIXTURE_OR_TASK_MODULE names a user's module.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib
from typing import Any

import seqio

from perlhf_jax.core import errors
from perlhf_jax.core import named_modules
from perlhf_jax.core import user_code
from perlhf_jax.data import cached_tasks
from perlhf_jax.data import kinds
from perlhf_jax.data import sources

_PACKAGE = 'tasks'
_BUILT_IN = (
  'android_control',
  'bolt',
  'demo',
  'demo_vqa',
  'easy_vqa',
  'hh',
  'mixtures',
  'nlvr',
  'shp',
  'taskmaster',
  'tldr',
  'vqav2',
)


@dataclasses.dataclass(frozen=True)
class TaskSummary:
  """One registered task or mixture, for `perlhf tasks`.

  Attributes:
    name: name of the task, for MIXTURE_OR_TASK_NAME.
    kind: sft, pairwise, pointwise, prompts, or `other` for a task that no
      stage can read.
    has_images: whether its examples have images.
    splits: names of its splits.
    info: description, homepage and licence.
    location: where to put its files.
    parts: rate of each task or mixture in a mixture, as a number or the name of
      the function that computes it; None for a task.
  """

  name: str
  kind: str
  has_images: bool
  splits: tuple[str, ...]
  info: sources.DatasetInfo = dataclasses.field(
    default_factory=sources.DatasetInfo
  )
  location: str = ''
  parts: Mapping[str, float | str] | None = None


def import_tasks(module: str | None = None) -> None:
  """Registers the built-in tasks and those of one more module.

  It also tells SeqIO where caches are, since mixtures ask for their sizes.

  Args:
    module: importable name, such as `my_tasks` or `my_package.tasks`.

  Raises:
    ConfigError: the module cannot be imported, or another package named `tasks`
      hides the built-in ones.
  """
  package = importlib.import_module(_PACKAGE)
  if not getattr(package, 'HOLDS_PERLHF_JAX_TASKS', False):
    place = getattr(package, '__file__', None) or list(package.__path__)
    raise errors.ConfigError(
      f'The built-in tasks are hidden by another package named {_PACKAGE!r},'
      f' at {place}. Rename that one, start from another directory, or put'
      ' the directory of perlhf_jax first on PYTHONPATH.'
    )
  for name in _BUILT_IN:
    importlib.import_module(f'{_PACKAGE}.{name}')
  if module:
    named_modules.import_module(module)
  cached_tasks.add_cache_dir()


def find(name: str) -> seqio.Task | seqio.Mixture:
  """Looks up a registered task or mixture.

  Raises:
    ConfigError: the name is not registered; the message suggests similar names.
  """
  names = _names()
  if name in names:
    return seqio.get_mixture_or_task(name)
  near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
  if near:
    hint = f'Did you mean {" or ".join(near)}?'
  else:
    hint = f'Registered are: {", ".join(sorted(names))}.'
  raise errors.ConfigError(
    f'There is no task or mixture named {name!r}. {hint} `perlhf tasks` lists'
    ' them all. A task of your own is registered by the module that'
    ' MIXTURE_OR_TASK_MODULE names.'
  )


def is_registered(name: str) -> bool:
  """Whether a task or mixture of this name is registered."""
  return name in _names()


def _names() -> list[str]:
  return [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]


def summaries() -> list[TaskSummary]:
  """Returns all registered tasks by name, and then all mixtures."""
  result = []
  for name in sorted(seqio.TaskRegistry.names()):
    task = seqio.TaskRegistry.get(name)
    source = task.source
    ours = isinstance(source, sources.TextSource)
    result.append(
      TaskSummary(
        **_features(task),
        info=source.info if ours else sources.DatasetInfo(),
        location=source.location if ours else type(source).__name__,
      )
    )
  for name in sorted(seqio.MixtureRegistry.names()):
    mixture = seqio.MixtureRegistry.get(name)
    result.append(
      TaskSummary(
        **_features(mixture),
        parts={
          part: user_code.name_of(rate) if callable(rate) else float(rate)
          for part, rate in mixture.rate_per_task_name.items()
        },
      )
    )
  return result


def _features(provider: seqio.Task | seqio.Mixture) -> dict[str, Any]:
  """Returns the fields of a summary that tasks and mixtures share."""
  features = provider.output_features
  kind = kinds.of_features(features)
  # A mixture has a set of tasks, whose order varies.
  tasks = getattr(provider, 'tasks', [provider])
  splits = (split for task in tasks for split in task.splits or ())
  return {
    'name': provider.name,
    'kind': 'other' if kind is None else kind.name,
    'has_images': kinds.IMAGES in features,
    'splits': tuple(map(str, dict.fromkeys(splits))),
  }
