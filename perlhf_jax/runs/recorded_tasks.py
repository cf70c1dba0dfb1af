"""The task of a checkpoint, found again without being told where it is."""

import dataclasses

from absl import logging
from etils import epy

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.training import multihost

with epy.lazy_imports():
  from perlhf_jax.data import task_modules  # SeqIO is behind it.


def with_module(
  dataset: dataset_config.DatasetConfig,
  metadata: run_metadata.RunMetadata,
  where: str,
) -> dataset_config.DatasetConfig:
  """Imports the module that registered the task of a checkpoint.

  Nothing is imported if the data set is of another task, or names a module
  itself, or the task is one of ours. A checkpoint may be anybody's, so that its
  word alone runs no file of the current folder.

  Args:
    dataset: what is to be read.
    metadata: of the checkpoint.
    where: it is, for messages.

  Returns:
    The data set, which names that module.

  Raises:
    ConfigError: the module cannot be imported; on every process.
  """
  module, task = metadata.module, metadata.task
  is_needed = module and not dataset.module
  if not is_needed or dataset.mixture_or_task_name != task:
    return dataset
  logging.info(
    'Importing the module %s: as %s says, it registers the task %s, and no '
    'other MIXTURE_OR_TASK_MODULE is given.',
    *(module, where, task),
  )
  with multihost.together():
    try:
      task_modules.import_tasks(module, named_by_user=False)
    except errors.ConfigError as error:
      raise errors.ConfigError(
        f'{where} was trained on the task {task!r}. {error} A module of the '
        'current folder is imported only if you name it: '
        f'--gin.MIXTURE_OR_TASK_MODULE="\'{module}\'".'
      ) from error
  return dataclasses.replace(dataset, module=module)
