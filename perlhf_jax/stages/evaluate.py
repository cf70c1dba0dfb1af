"""Evaluates a checkpoint on a task, and writes MODEL_DIR/eval.json."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Annotated, Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.runs import recorded_tasks
from perlhf_jax.stages import candidates as candidates_lib
from perlhf_jax.stages import evaluate_policy
from perlhf_jax.stages import evaluate_rewards
from perlhf_jax.stages import line_files
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import sample_images
from perlhf_jax.stages import train_reward
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

FILE_NAME = 'eval.json'
# For checkpoints that do not record their lengths.
_LENGTHS = {'inputs': 512, 'targets': 128}


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
  input_path: str | None = None,
  output_path: str | None = None,
  reward: evaluate_rewards.RewardEvaluation | None = None,
  policy: evaluate_policy.PolicyEvaluation | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
) -> dict[str, Any]:
  """Evaluates a checkpoint and writes eval.json beside its checkpoints.

  A metric that the examples do not define, such as the ROC-AUC of a single
  class, is null in eval.json, and the log says why.

  A reward model on pairs gets pairwise accuracy (a tie counts one half): over
  all pairs, over those whose chosen response is longer or shorter, and over
  bins of the difference in score, of the difference in length and of
  confidence; and calibration. A reward model on judged responses gets ROC-AUC,
  accuracy and balanced accuracy at probability 0.5, and calibration. Policies
  and SFT models answer the prompts of the task, and get mean score, KL to the
  reference, lengths, the judge's score, the win rate against a baseline, and
  exact match and ROUGE if the task has targets.

  Instead of a task, a reward model can rank the candidates of a file: best-of-N
  records are scored per subset, and responses in several styles per domain.

  Args:
    checkpoint: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    mixture_or_task_name: the task; by default the task of the training.
    split: split of the task.
    batch_size: examples per batch; the metrics of reward models do not depend
      on it.
    max_examples: number of examples, from the first on; None for all.
    task_feature_lengths: by default the lengths of the training.
    module: module that registers the task, if it is not built in; messages name
      the module that the checkpoint records, but nothing imports it.
    use_cached: whether to read SeqIO's offline cache of the task.
    skip_bad_rows: whether to skip rows that cannot be used.
    base_checkpoint: path of an adapter's base, or of the reference of a policy
      that was tuned in full, if it is not where the checkpoint records it.
    input_path: a .jsonl file of candidates for a reward model, instead of a
      task.
    output_path: the file to write; by default eval.json beside the checkpoints.
    reward: how to evaluate a reward model; a policy takes none of its settings.
    policy: how to evaluate a language model; a reward model takes none of its
      settings.
    partitioner: how to shard the model and batches over devices.

  Returns:
    The content of eval.json, with None for null.

  Raises:
    UserError: an input cannot be used.
  """
  mesh = partitioner.make_mesh()
  partitioning.check_batch_size(batch_size, mesh)
  candidates = read_candidates(input_path, max_examples, mixture_or_task_name)
  if output_path is not None:
    line_files.check_output(output_path)
  evaluation = _prepare(
    checkpoint,
    candidates,
    reward or evaluate_rewards.RewardEvaluation(),
    policy or evaluate_policy.PolicyEvaluation(),
    mesh,
    base_checkpoint,
    mixture_or_task_name=mixture_or_task_name,
    split=split,
    batch_size=batch_size,
    max_examples=max_examples,
    task_feature_lengths=task_feature_lengths,
    module=module,
    use_cached=use_cached,
    skip_bad_rows=skip_bad_rows,
  )
  metrics, reasons = evaluation.measure()
  for name, value in metrics.items():
    if isinstance(value, float) and not math.isfinite(value):
      logging.warning(
        '%s is undefined, and null in eval.json: %s.',
        *(name, reasons.get(name, f'it is {value}')),
      )
  model = evaluation.model
  path = epath.Path(model.path)
  folder = path if model.metadata is None else step_files.model_dir_of(path)
  # Folders of other formats get no folder of images.
  if evaluation.examples is not None and not output_path and model.metadata:
    metrics['samples'] = sample_images.write(
      metrics['samples'],
      evaluation.examples,
      folder,
      policy.num_samples if policy is not None else 1,
    )
  result = {
    'checkpoint': str(path),
    'step': int(path.name) if model.metadata and path.name.isdigit() else None,
    **evaluation.about,
    **strict_json.null_nonfinite(metrics),
  }
  text = strict_json.dumps(result, indent=2)
  logging.info('%s', text)
  if jax.process_index() == 0:
    _write(epath.Path(output_path or folder / FILE_NAME), text + '\n')
  return result


def read_candidates(
  input_path: str | None,
  max_examples: int | None,
  mixture_or_task_name: str | None,
) -> candidates_lib.Candidates | None:
  """Reads the file of candidates; None if there is none.

  Raises:
    ConfigError: a task is given too.
    DataError: see `candidates.read`.
  """
  if input_path is None:
    return None
  if mixture_or_task_name is not None:
    raise errors.ConfigError(
      f'--input={input_path} and MIXTURE_OR_TASK_NAME {mixture_or_task_name} '
      'are two sets of questions; give one of them.'
    )
  with multihost.together():
    return candidates_lib.read(input_path, max_examples)


def dataset_of(
  checkpoint: str,
  metadata: run_metadata.RunMetadata | None,
  *,
  mixture_or_task_name: str | None,
  task_feature_lengths: Mapping[str, int] | None,
  **options: Any,
) -> input_pipeline.DatasetConfig:
  """Returns the data set to read, by default the data set of the training.

  Args:
    checkpoint: path of the checkpoint, for messages.
    metadata: metadata of the checkpoint; None for other formats.
    mixture_or_task_name: the task; None for the task of the training.
    task_feature_lengths: None for the lengths of the training.
    **options: other fields of the `DatasetConfig`.

  Raises:
    ConfigError: no task is given, and the checkpoint records none.
  """
  trained = metadata is not None and metadata.task is not None
  if not trained and mixture_or_task_name is None:
    raise errors.ConfigError(
      f'{checkpoint} records no task to evaluate it on; set '
      'MIXTURE_OR_TASK_NAME.'
    )
  trained_with = {}
  if metadata is not None:
    trained_with['truncate_prompt'] = metadata.truncate_prompt
  dataset = input_pipeline.DatasetConfig(
    mixture_or_task_name=mixture_or_task_name or metadata.task,
    task_feature_lengths=task_feature_lengths
    or (metadata.task_feature_lengths if trained else _LENGTHS),
    shuffle=False,
    **options,
    **trained_with,
  )
  if mixture_or_task_name is None:
    recorded_tasks.check_module(dataset, metadata, checkpoint)
  return dataset


@dataclasses.dataclass(frozen=True)
class _Evaluation:
  """A model that is ready to be evaluated.

  Attributes:
    model: the model, without weights.
    about: what eval.json says of the examples.
    measure: returns the metrics, and why some may be undefined.
    examples: the prompts that a policy answers; None for a reward model.
  """

  model: loaded_model.LoadedModel
  about: Mapping[str, Any]
  measure: Callable[[], tuple[dict[str, Any], Mapping[str, str]]]
  examples: examples_lib.Examples | None = None


def _prepare(
  checkpoint,
  candidates,
  reward,
  policy,
  mesh,
  base_checkpoint,
  *,
  batch_size,
  **options,
) -> _Evaluation:
  """Loads a model and the data; the result keeps no loaded weights."""
  loaded = loading.load(checkpoint, mesh, base_checkpoint)
  if loaded.is_reward_model:
    policy.check_unused(checkpoint)
  else:
    reward.check_unused(checkpoint)
  if candidates is not None:
    placed.require_reward_model(loaded, checkpoint)
    about = {'input': candidates.path, 'examples': len(candidates.rows)}
    questions = evaluate_rewards.CandidateQuestions(
      candidates, options['task_feature_lengths'], batch_size, mesh
    )
    measure = evaluate_rewards.prepare(loaded, reward, questions, mesh)
    return _Evaluation(loaded.without_weights(), about, measure)
  dataset = dataset_of(
    checkpoint, loaded.metadata, batch_size=batch_size, **options
  )
  with multihost.together():
    examples = loaded.load_examples(dataset)
  about = {
    'task': dataset.mixture_or_task_name,
    'split': dataset.split,
    'examples': len(examples),
  }
  if loaded.is_reward_model:
    objective = train_reward.check_objective(examples, examples.name)
    questions = evaluate_rewards.TaskQuestions(
      examples, objective, loaded.config.image_size, batch_size, mesh
    )
    measure = evaluate_rewards.prepare(loaded, reward, questions, mesh)
    return _Evaluation(loaded.without_weights(), about, measure)
  measure = evaluate_policy.prepare(
    loaded,
    policy,
    examples,
    response_length=policy_evaluation.response_length(
      dataset.task_feature_lengths
    ),
    batch_size=batch_size,
    mesh=mesh,
    base_checkpoint=base_checkpoint,
  )
  return _Evaluation(loaded.without_weights(), about, measure, examples)


def _write(path: epath.Path, text: str) -> None:
  try:
    path.write_text(text)
  except OSError as error:
    raise errors.CheckpointError(
      f'Cannot write {path}: {error}. The figures are in the log above.'
    ) from error
