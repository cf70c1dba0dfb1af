"""The task of a checkpoint, which a user's module may register."""

from etils import epy

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.training import multihost

with epy.lazy_imports():
  from perlhf_jax.data import task_modules  # SeqIO is behind it.


def check_module(
  dataset: dataset_config.DatasetConfig,
  metadata: run_metadata.RunMetadata,
  where: str,
) -> None:
  """Checks that the module that registers a checkpoint's task is given.

  The error names the recorded module, but never imports it: a checkpoint must
  not run code.

  Args:
    dataset: the data set to read.
    metadata: the metadata of the checkpoint.
    where: path of the checkpoint, for messages.

  Raises:
    ConfigError: the task is not registered, and the data set names no module;
      on every process.
  """
  module, task = metadata.module, metadata.task
  is_needed = module and not dataset.module
  if not is_needed or dataset.mixture_or_task_name != task:
    return
  with multihost.together():
    task_modules.import_tasks()
    if not task_modules.is_registered(task):
      raise errors.ConfigError(
        f'{where} records that it was trained on the task {task!r} of the '
        f'module {module!r}. A checkpoint does not make perlhf import '
        'modules: if you trust the module, name it, and start in its folder '
        'or put that folder on PYTHONPATH: '
        f'--gin.MIXTURE_OR_TASK_MODULE="{module!r}".'
      )
