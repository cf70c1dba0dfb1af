"""Compares LoRA with full tuning on this machine: time, memory, trained share.

Needs no data: without a checkpoint weights are random, and without a task
prompts are random. Without both, neither TensorFlow nor SeqIO is imported. Only
the results are written.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
from typing import Annotated, Any

from etils import epath
import jax
import numpy as np

from perlhf_jax.benchmark import batches as batches_lib
from perlhf_jax.benchmark import machine as machine_lib
from perlhf_jax.benchmark import policy as policy_lib
from perlhf_jax.benchmark import real_lengths
from perlhf_jax.benchmark import reward as reward_lib
from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import table as table_lib
from perlhf_jax.benchmark import task_batches as task_batches_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.checkpoints import initial
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import tree_paths
from perlhf_jax.data import dataset_config
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import line_files
from perlhf_jax.training import model_variables
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

_RANDOM = 'random'
_READERS = ('seqio', 'tensorflow')
_Tuning = Annotated[str, checks.OneOf('lora', 'full')]


@checks.checked
def benchmark(
  *,
  algorithm: algorithm_lib.Algorithm,
  lora: lora_lib.LoraConfig,
  optimizer: optimizers.Optimizer,
  task_feature_lengths: Mapping[str, Annotated[int, checks.AtLeastOne]],
  batch_size: Annotated[int, checks.AtLeastOne],
  num_samples: Annotated[int, checks.AtLeastOne] = 1,
  temperature: Annotated[float, checks.Positive] = 1.0,
  tunings: Sequence[_Tuning] = ('lora', 'full'),
  repeats: Annotated[int, checks.AtLeastOne] = 5,
  model: t5_config.T5Config | None = None,
  make_vocabulary: Callable[[], Any] | None = None,
  initial_checkpoint_path: str | None = None,
  mixture_or_task_name: str | None = None,
  module: str | None = None,
  skip_bad_rows: bool = False,
  length_buckets: dataset_config.LengthBuckets = 8,
  length_window: dataset_config.LengthWindow = 100,
  task_batches: Annotated[int, checks.AtLeastOne] = 20,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  seed: int = 0,
  output: str | None = None,
) -> dict[str, Any]:
  """Times LoRA and full tuning in turn, and prints a table.

  Times the training step of a pairwise reward model; an RL iteration as
  `train_policy` makes it; the parts of the iteration one by one (sampling,
  reward model, reference, value model and learning); and the sampler without
  early stop. Times are medians, without compilation. Memory is the compiler's
  figure per device, arguments and results included.

  For each program, reports the share of this machine's measured rate of matrix
  products, and for the sampler also the share of its memory bandwidth.

  Random prompts and responses have uniform lengths, from a quarter of the
  limit to all of it. Samples from random weights hardly ever end. Images, for
  models that read them, are noise.

  With a task, prompts and images are the task's. If the task has pairs or
  judged responses, the training step uses its first batch, padded to the
  limits. The step is also timed on consecutive batches grouped by length, as in
  training.

  Args:
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    lora: the adapters to compare with full tuning.
    optimizer: optimizer of every trained model.
    task_feature_lengths: maximum tokens of `inputs` and `targets`.
    batch_size: prompts per iteration, and pairs per reward step.
    num_samples: responses per prompt.
    temperature: temperature of the sampling, above 0.
    tunings: `lora`, `full` or both.
    repeats: timed calls of each program.
    model: architecture; None for the initial checkpoint's.
    make_vocabulary: makes the tokenizer of the model file; only called for a
      task or a checkpoint.
    initial_checkpoint_path: weights to use; None for random ones.
    mixture_or_task_name: a task whose examples to use; None for random ones.
    module: module that registers the task.
    skip_bad_rows: skip unusable rows of the task.
    length_buckets: maximum number of batch shapes by length; 0 for one shape.
    length_window: number of batches within which examples are grouped by
      length.
    task_batches: number of consecutive batches of the task to time.
    partitioner: how to shard the model and batches over devices.
    seed: seed of weights, prompts and samples.
    output: a JSON file for the results.

  Returns:
    The content of the file: `setting`; `lora`, `full` and `lora_over_full`,
    each with `reward_step`, `rl_iteration`, `sampler`, and perhaps
    `real_lengths`; and `seconds`, every timed call by tuning and name.

  Raises:
    UserError: an input cannot be used; raised before anything is timed.
  """
  mesh = partitioner.make_mesh()
  dataset_config.check_lengths(task_feature_lengths)
  if not tunings:
    raise errors.ConfigError(
      "TUNINGS is empty: give 'lora', 'full' or both, ('lora', 'full')."
    )
  if 'full' in tunings:
    optimizers.check_adapted(optimizer, None)
  algorithm_lib.check_algorithm(algorithm, num_samples)
  partitioning.check_batch_size(
    batch_size, mesh, minibatches=algorithm.minibatches
  )
  if output is not None:
    line_files.check_output(output)
  if mixture_or_task_name is not None or initial_checkpoint_path is not None:
    _check_can_read()
  start = _resolve_start(
    model, make_vocabulary, initial_checkpoint_path, mixture_or_task_name, mesh
  )
  rng = np.random.default_rng(seed)
  limits, vocab_size = task_feature_lengths, start.config.vocab_size
  task = None
  if mixture_or_task_name is None:
    prompts = batches_lib.random_prompts(
      rng, batch_size, limits, vocab_size, start.config.image_size
    )
  else:
    dataset = input_pipeline.DatasetConfig(
      mixture_or_task_name=mixture_or_task_name,
      task_feature_lengths=limits,
      batch_size=batch_size,
      seed=seed,
      module=module,
      skip_bad_rows=skip_bad_rows,
      length_buckets=length_buckets,
      length_window=length_window,
    )
    task = task_batches_lib.load(start, dataset)
    prompts = task.prompts()
  if start.params is None:
    start = with_random_weights(start, mesh, seed)
  machine = machine_lib.measure(start.config.compute_dtype)

  settings = {
    tuning: setting_lib.Setting(
      lora if tuning == 'lora' else None, optimizer, mesh, seed
    )
    for tuning in dict.fromkeys(tunings)
  }
  objective = None if task is None else task.objective
  has_rewards = objective is not None
  if has_rewards:
    batch = task.rewards()
  else:
    objective = kinds.PAIRWISE
    batch = batches_lib.pair_batch(rng, prompts, limits, vocab_size)
  programs = {
    tuning: reward_lib.RewardPrograms(start, setting, objective, batch)
    for tuning, setting in settings.items()
  }
  of_rewards = timing.measure(programs, repeats, machine)
  if has_rewards:
    by_length = real_lengths.measure(
      programs, task.by_length(task_batches), mesh, machine
    )
    for tuning, each in by_length.items():
      of_rewards[0][tuning]['real_lengths'] = each
  rewards = {tuning: each.trained() for tuning, each in programs.items()}

  sampling = sampler.SamplingConfig(
    max_length=limits['targets'],
    temperature=temperature,
    num_samples=num_samples,
  )
  lengths = [len(prompt) for prompt in batches_lib.prompts_of(prompts)]
  prompts = placement.put_batch(prompts, mesh)
  programs = None  # Frees the optimizer states.
  programs = {
    tuning: policy_lib.PolicyPrograms(
      start, setting, algorithm, sampling, rewards[tuning], prompts
    )
    for tuning, setting in settings.items()
  }
  of_policies = timing.measure(programs, repeats, machine)

  figures, seconds = (
    {t: {**of_reward[t], **of_policy[t]} for t in settings}
    for of_reward, of_policy in zip(of_rewards, of_policies, strict=True)
  )
  device = jax.devices()[0]
  result = {
    'setting': {
      'platform': device.platform,
      'device_kind': device.device_kind,
      'devices': jax.device_count(),
      'jax': jax.__version__,
      'dtype': machine.dtype,
      'matmul_flops_per_second': machine.matmul_flops,
      'memory_bytes_per_second': machine.memory_bytes,
      'weights': initial_checkpoint_path or _RANDOM,
      'parameters': tree_paths.count_parameters(start.params),
      'tunings': list(settings),
      'lora_method': lora.method,
      'lora_rank': lora.rank,
      'algorithm': type(algorithm).__name__,
      'prompts': mixture_or_task_name or _RANDOM,
      'objective': objective.name,
      'prompt_lengths': [min(lengths), float(np.mean(lengths)), max(lengths)],
      'task_feature_lengths': dict(limits),
      'batch_size': batch_size,
      'num_samples': num_samples,
      'temperature': temperature,
      'repeats': repeats,
      'seed': seed,
    },
    **figures,
    'seconds': seconds,
  }
  if len(settings) > 1:
    result['lora_over_full'] = jax.tree.map(
      # Both may be 0, such as padding.
      lambda lora, full: 1.0 if lora == full else lora / full,
      figures['lora'],
      figures['full'],
    )
  if jax.process_index() == 0:
    print(table_lib.make_table(result))
    if output is not None:
      epath.Path(output).write_text(strict_json.dumps(result, indent=2) + '\n')
  return result


def given_vocabulary(vocabulary: Any) -> Any:
  """Returns its argument; lets gin make the vocabulary only when called."""
  return vocabulary


def _check_can_read() -> None:
  """Raises a ConfigError if the libraries to read data are not installed."""
  missing = [m for m in _READERS if importlib.util.find_spec(m) is None]
  if missing:
    raise errors.ConfigError(
      f'A task or a checkpoint can only be read with {" and ".join(missing)} '
      'installed. Install perlhf_jax with all its dependencies (pip install '
      '-e . -c constraints.txt in its folder), or leave out '
      'MIXTURE_OR_TASK_NAME and INITIAL_CHECKPOINT_PATH.'
    )


def _resolve_start(
  model, make_vocabulary, path, task, mesh
) -> loaded_model.LoadedModel:
  if path is None and model is None:
    raise errors.ConfigError(
      'There is no model. Give a gin/models/*.gin file for random weights, or '
      'set INITIAL_CHECKPOINT_PATH.'
    )
  if path is None and task is None:
    return loaded_model.LoadedModel(model)
  vocabulary = None if make_vocabulary is None else make_vocabulary()
  if path is not None:
    return initial.load_initial(model, vocabulary, None, path, mesh)
  if vocabulary is None:
    raise errors.ConfigError(
      f'The prompts of {task} are tokenised with VOCABULARY, which is None: '
      'add a file of gin/vocabularies after the model file, set '
      'INITIAL_CHECKPOINT_PATH, or leave out MIXTURE_OR_TASK_NAME for random '
      'prompts.'
    )
  initial.check_vocabulary(model, vocabulary)
  return loaded_model.LoadedModel(model, vocabulary)


def with_random_weights(
  start: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh, seed: int
) -> loaded_model.LoadedModel:
  """Draws the backbone from which all tunings and roles start.

  Args:
    start: a model without weights.
    mesh: where to put the weights.
    seed: seed of the weights.
  """
  bare = encoder_decoder.make_model(start.config)

  def init():
    variables = encoder_decoder.init_variables(bare, jax.random.key(seed))
    return {'params': variables['params']}

  variables, _ = model_variables.place(init, {}, mesh)
  return dataclasses.replace(
    start,
    path='(random weights)',
    params=variables['params'],
    backbone_fingerprint=_RANDOM,
    fingerprint=_RANDOM,
  )
