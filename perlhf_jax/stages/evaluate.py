"""Metrics of a trained reward model on a task, into MODEL_DIR/eval.json."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.stages import backbones
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import train_reward
from perlhf_jax.stages import trained_models
from perlhf_jax.training import partitioning


def evaluate(
  *,
  checkpoint: str,
  mixture_or_task_name: str | None = None,
  split: str = 'test',
  batch_size: int = 64,
  max_examples: int | None = None,
  task_feature_lengths: Mapping[str, int] | None = None,
  module: str | None = None,
  use_cached: bool = False,
  skip_bad_rows: bool = False,
  base_checkpoint: str | None = None,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> dict[str, Any]:
  """Evaluates a reward model and writes eval.json beside its checkpoints.

  Pairs give pairwise accuracy (a tie counts one half), in all and where the
  chosen response is the longer or the shorter one; judged responses give
  ROC-AUC, accuracy and balanced accuracy at probability 0.5, and calibration.

  Args:
    checkpoint: MODEL_DIR (newest step), or one of its checkpoints/<step>,
      checkpoints/best included.
    mixture_or_task_name: the task; by default the one it was trained on.
    split: of the task.
    batch_size: examples scored at once; the metrics do not depend on it.
    max_examples: the first so many; all if None.
    task_feature_lengths: by default those of training.
    module: module that registers the task, if it is not one of ours.
    use_cached: whether to read SeqIO's offline cache of the task.
    skip_bad_rows: whether to leave out rows that cannot be used.
    base_checkpoint: where the adapter's base is, if it has been moved.
    mesh_shape: sizes of (data, fsdp, tensor).

  Returns:
    What eval.json holds.

  Raises:
    UserError: any input that cannot be used.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh)
  loaded = trained_models.require_reward_model(
    backbones.load_checkpoint(checkpoint, base_checkpoint), checkpoint
  )
  metadata = loaded.metadata
  dataset = input_pipeline.DatasetConfig(
    mixture_or_task_name=mixture_or_task_name or metadata.task,
    task_feature_lengths=task_feature_lengths or metadata.task_feature_lengths,
    split=split,
    batch_size=batch_size,
    shuffle=False,
    use_cached=use_cached,
    module=module,
    max_examples=max_examples,
    skip_bad_rows=skip_bad_rows,
    truncate_prompt=metadata.truncate_prompt,
  )
  examples = input_pipeline.load_examples(dataset, metadata.vocabulary)
  objective = train_reward.check_objective(
    examples, dataset.mixture_or_task_name
  )
  model, variables = trained_models.place_reward_model(loaded, mesh)
  columns = reward_scoring.collect(
    reward_scoring.make_scorer(model, mesh, objective),
    variables,
    {},
    input_pipeline.eval_batches(examples, batch_size),
  )
  step = epath.Path(loaded.step_path)
  result = {
    'checkpoint': str(step),
    'step': int(step.name),
    'task': dataset.mixture_or_task_name,
    'split': split,
    'examples': len(next(iter(columns.values()))),
    **reward_scoring.reward_metrics(columns, objective),
  }
  logging.info('%s', json.dumps(result, indent=2))
  if jax.process_index() == 0:
    path = step.parent.parent / 'eval.json'
    try:
      path.write_text(json.dumps(result, indent=2) + '\n')
    except OSError as error:
      raise errors.CheckpointError(
        f'Cannot write {path}: {error}. The figures are in the log above.'
      ) from error
  return result
