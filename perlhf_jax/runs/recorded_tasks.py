"""The task of a checkpoint, which a module of the user's own may register."""

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
  """Asks for the module that registered the task of a checkpoint.

  It is named and not imported: a checkpoint is data, whoever it comes from, and
  what is imported runs.

  Args:
    dataset: what is to be read.
    metadata: of the checkpoint.
    where: it is, for messages.

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
        f'{where} was trained on the task {task!r}, which the module '
        f'{module!r} registered, as it says itself. A checkpoint has nothing '
        'imported: if you know the module, name it, and start in its folder '
        f'or put that on PYTHONPATH: --gin.MIXTURE_OR_TASK_MODULE="{module!r}".'
      )
