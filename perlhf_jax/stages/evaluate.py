"""Metrics of a checkpoint on a task, into MODEL_DIR/eval.json."""

from collections.abc import Mapping
import json
from typing import Annotated, Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import input_pipeline
from perlhf_jax.stages import backbones
from perlhf_jax.stages import evaluate_policy
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import train_reward
from perlhf_jax.stages import trained_models
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

_HF_LENGTHS = {'inputs': 512, 'targets': 128}


@checks.checked
def evaluate(
  *,
  checkpoint: str,
  mixture_or_task_name: str | None = None,
  split: str = 'test',
  batch_size: Annotated[int, checks.AtLeastOne] = 64,
  max_examples: Annotated[int | None, checks.AtLeastOne] = None,
  task_feature_lengths: Mapping[str, Annotated[int, checks.AtLeastOne]]
  | None = None,
  module: str | None = None,
  use_cached: bool = False,
  skip_bad_rows: bool = False,
  base_checkpoint: str | None = None,
  policy: evaluate_policy.PolicyEvaluation | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
) -> dict[str, Any]:
  """Evaluates a checkpoint and writes eval.json beside its checkpoints.

  Of reward models, pairs give pairwise accuracy (a tie counts one half), in
  all and where the chosen response is the longer or the shorter one; judged
  responses give ROC-AUC, accuracy and balanced accuracy at probability 0.5,
  and calibration. Policies and SFT models answer the prompts of the task:
  mean score, KL to the reference, lengths, what a judge says, the win rate
  against a baseline, and exact match and ROUGE where the task has targets.

  Args:
    checkpoint: MODEL_DIR (newest step), one of its checkpoints/<step>,
      checkpoints/best included, or a Hugging Face T5 directory.
    mixture_or_task_name: the task; by default the one it was trained on.
    split: of the task.
    batch_size: examples at once; the metrics of reward models do not depend
      on it.
    max_examples: the first so many; all if None.
    task_feature_lengths: by default those of training.
    module: module that registers the task, if it is not one of ours.
    use_cached: whether to read SeqIO's offline cache of the task.
    skip_bad_rows: whether to leave out rows that cannot be used.
    base_checkpoint: where the adapter's base is, or the reference of a policy
      that was tuned in full, if it has been moved.
    policy: how to evaluate a language model.
    partitioner: how the model and batches are split among devices.

  Returns:
    What eval.json holds.

  Raises:
    UserError: any input that cannot be used.
  """
  mesh = partitioner.make_mesh()
  partitioning.check_batch_size(batch_size, mesh)
  loaded = backbones.load_checkpoint(checkpoint, mesh, base_checkpoint)
  metadata = loaded.metadata
  if metadata is None and mixture_or_task_name is None:
    raise errors.ConfigError(
      f'{checkpoint} does not say on what to evaluate it; set '
      'MIXTURE_OR_TASK_NAME.'
    )
  lengths = task_feature_lengths or (
    _HF_LENGTHS if metadata is None else metadata.task_feature_lengths
  )
  dataset = input_pipeline.DatasetConfig(
    mixture_or_task_name=mixture_or_task_name or metadata.task,
    task_feature_lengths=lengths,
    split=split,
    batch_size=batch_size,
    shuffle=False,
    use_cached=use_cached,
    module=module,
    max_examples=max_examples,
    skip_bad_rows=skip_bad_rows,
    truncate_prompt=(
      'keep_end' if metadata is None else metadata.truncate_prompt
    ),
  )
  backbone = getattr(loaded, 'backbone', loaded)
  with multihost.together():
    examples = input_pipeline.load_examples(
      dataset, backbone.vocabulary, backbone.config.image_size
    )
  if metadata is not None and metadata.kind == run_metadata.REWARD:
    metrics = _evaluate_reward_model(loaded, examples, batch_size, mesh)
  else:
    metrics = evaluate_policy.evaluate_policy(
      loaded,
      policy or evaluate_policy.PolicyEvaluation(),
      examples,
      response_length=policy_evaluation.response_length(lengths),
      batch_size=batch_size,
      mesh=mesh,
      base_checkpoint=base_checkpoint,
    )
  step = getattr(loaded, 'step_path', None)
  result = {
    'checkpoint': step or checkpoint,
    'step': None if step is None else int(epath.Path(step).name),
    'task': dataset.mixture_or_task_name,
    'split': split,
    'examples': len(examples),
    **metrics,
  }
  logging.info('%s', json.dumps(result, indent=2, ensure_ascii=False))
  folder = epath.Path(checkpoint)
  if step is not None:
    folder = epath.Path(step).parent.parent
  if jax.process_index() == 0:
    _write(folder / 'eval.json', result)
  return result


def _evaluate_reward_model(loaded, examples, batch_size, mesh):
  objective = train_reward.check_objective(examples, examples.name)
  model, variables = trained_models.place_reward_model(loaded, mesh)
  loaded.backbone.release()
  columns = reward_scoring.collect(
    reward_scoring.make_scorer(model, mesh, objective),
    variables,
    {},
    input_pipeline.eval_batches(examples, batch_size),
  )
  return reward_scoring.reward_metrics(columns, objective)


def _write(path: epath.Path, result: Mapping[str, Any]) -> None:
  text = json.dumps(result, indent=2, ensure_ascii=False)
  try:
    path.write_text(text + '\n')
  except OSError as error:
    raise errors.CheckpointError(
      f'Cannot write {path}: {error}. The figures are in the log above.'
    ) from error
