"""LoRA against full tuning on this machine: time, memory, trained share.

Needs no data: the weights of a model file are random unless a checkpoint is
given, and so are prompts unless a task is. Nothing is written but the figures.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from etils import epath
import jax
import numpy as np

from perlhf_jax.benchmark import batches as batches_lib
from perlhf_jax.benchmark import policy as policy_lib
from perlhf_jax.benchmark import reward as reward_lib
from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.benchmark import table as table_lib
from perlhf_jax.benchmark import timing
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import tree_paths
from perlhf_jax.data import dataset_config
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import backbones
from perlhf_jax.stages import line_files
from perlhf_jax.stages import model_variables
from perlhf_jax.stages import starts
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

_RANDOM = 'random'


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
  repeats: Annotated[int, checks.AtLeastOne] = 5,
  model: t5_config.T5Config | None = None,
  vocabulary: Any = None,
  initial_checkpoint_path: str | None = None,
  mixture_or_task_name: str | None = None,
  module: str | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  seed: int = 0,
  output: str | None = None,
) -> dict[str, Any]:
  """Times LoRA and full tuning in turn, and prints a table.

  Timed are the training step of a pairwise reward model; an iteration of
  reinforcement learning as `train_policy` makes it; its parts one by one,
  sampling, reward model, reference, value model and learning; and the sampler
  without its early stop. Times are medians, without compilation. Memory is
  what the compiler says a device needs, arguments and results included.

  Random prompts and responses have uniform lengths, from a quarter of the
  limit to all of it. Samples of random weights hardly ever end. Images, for
  models that read them, are noise.

  Args:
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    lora: the adapters that are held against full tuning.
    optimizer: of every model that is trained.
    task_feature_lengths: tokens of `inputs` and `targets` at most.
    batch_size: prompts of an iteration, and pairs of a reward step.
    num_samples: responses of each prompt.
    temperature: of the sampling, above 0.
    repeats: timed calls of each program.
    model: architecture; that of the initial checkpoint if None.
    vocabulary: tokenizer; needed for a task on random weights only.
    initial_checkpoint_path: weights to use; None for random ones.
    mixture_or_task_name: a task whose prompts to use; None for random ones.
    module: module that registers the task.
    partitioner: how the model and batches are split among devices.
    seed: of weights, prompts and samples.
    output: JSON file for the figures; None for none.

  Returns:
    What the file holds: `setting`; `lora`, `full` and `lora_over_full`, each
    with `reward_step`, `rl_iteration` and `sampler`; and `seconds`, every
    timed call by tuning and name.

  Raises:
    UserError: any input that cannot be used; raised before anything is timed.
  """
  mesh = partitioner.make_mesh()
  dataset_config.check_lengths(task_feature_lengths)
  algorithm_lib.check_algorithm(algorithm, num_samples)
  partitioning.check_batch_size(
    batch_size, mesh, minibatches=algorithm.minibatches
  )
  if output is not None:
    line_files.check_output(output)
  start = _resolve_start(
    model, vocabulary, initial_checkpoint_path, mixture_or_task_name, mesh
  )
  rng = np.random.default_rng(seed)
  limits, vocab_size = task_feature_lengths, start.config.vocab_size
  if mixture_or_task_name is None:
    prompts = batches_lib.random_tokens(
      rng, batch_size, limits['inputs'], vocab_size
    )
  else:
    dataset = input_pipeline.DatasetConfig(
      mixture_or_task_name=mixture_or_task_name,
      task_feature_lengths=limits,
      batch_size=batch_size,
      max_examples=batch_size,
      seed=seed,
      module=module,
    )
    prompts = batches_lib.task_prompts(dataset, start.vocabulary)
  if start.backbone is None:
    start = _with_random_weights(start, mesh, seed)

  tunings = {
    'lora': setting_lib.Setting(lora, optimizer, mesh, seed),
    'full': setting_lib.Setting(None, optimizer, mesh, seed),
  }
  num_images = limits.get('images', 1)

  def put(batch):
    batch = batches_lib.with_images(
      rng, batch, start.config.image_size, num_images
    )
    return placement.put_batch(batch, mesh)

  batch = put(batches_lib.pair_batch(rng, prompts, limits, vocab_size))
  programs = {
    tuning: reward_lib.RewardPrograms(start, setting, batch)
    for tuning, setting in tunings.items()
  }
  rewards = {tuning: each.checkpoint for tuning, each in programs.items()}
  of_rewards = timing.measure(programs, repeats)

  sampling = sampler.SamplingConfig(
    max_length=limits['targets'],
    temperature=temperature,
    num_samples=num_samples,
  )
  batch = put(batches_lib.prompt_batch(prompts, limits['inputs']))
  programs = None  # Frees their weights.
  programs = {
    tuning: policy_lib.PolicyPrograms(
      start, setting, algorithm, sampling, rewards[tuning], batch
    )
    for tuning, setting in tunings.items()
  }
  of_policies = timing.measure(programs, repeats)

  figures, seconds = (
    {t: {**of_reward[t], **of_policy[t]} for t in tunings}
    for of_reward, of_policy in zip(of_rewards, of_policies, strict=True)
  )
  device, lengths = jax.devices()[0], [len(prompt) for prompt in prompts]
  result = {
    'setting': {
      'platform': device.platform,
      'device_kind': device.device_kind,
      'devices': jax.device_count(),
      'jax': jax.__version__,
      'weights': initial_checkpoint_path or _RANDOM,
      'parameters': tree_paths.count_parameters(start.backbone.params),
      'lora_rank': lora.rank,
      'algorithm': type(algorithm).__name__,
      'prompts': mixture_or_task_name or _RANDOM,
      'prompt_lengths': [min(lengths), float(np.mean(lengths)), max(lengths)],
      'task_feature_lengths': dict(limits),
      'batch_size': batch_size,
      'num_samples': num_samples,
      'temperature': temperature,
      'repeats': repeats,
      'seed': seed,
    },
    **figures,
    'lora_over_full': jax.tree.map(
      lambda lora, full: lora / full, figures['lora'], figures['full']
    ),
    'seconds': seconds,
  }
  if jax.process_index() == 0:
    print(table_lib.make_table(result))
    if output is not None:
      epath.Path(output).write_text(strict_json.dumps(result, indent=2) + '\n')
  return result


def _resolve_start(model, vocabulary, path, task, mesh) -> starts.Start:
  if path is not None:
    return starts.resolve_start(model, vocabulary, None, path, mesh)
  if model is None:
    raise errors.ConfigError(
      'No model: give a gin/models/*.gin file, for random weights, or '
      'INITIAL_CHECKPOINT_PATH.'
    )
  if task is None:
    return starts.Start(model, vocabulary, None)
  if vocabulary is None:
    raise errors.ConfigError(
      f'The prompts of {task} need a VOCABULARY to become tokens: put a file '
      'of gin/vocabularies behind the model file, give '
      'INITIAL_CHECKPOINT_PATH, or leave out MIXTURE_OR_TASK_NAME for random '
      'prompts.'
    )
  return starts.resolve_start(model, vocabulary, None, None, mesh)


def _with_random_weights(start, mesh, seed) -> starts.Start:
  """Draws a backbone once, for all tunings and roles to begin from."""
  bare = encoder_decoder.make_model(start.config)

  def init():
    variables = encoder_decoder.init_variables(bare, jax.random.key(seed))
    return {'params': variables['params']}

  variables, _ = model_variables.place(init, {}, mesh)
  backbone = backbones.Backbone(
    path='(random weights)',
    config=start.config,
    params=variables['params'],
    vocabulary=start.vocabulary,
    fingerprint=_RANDOM,
  )
  return starts.Start(start.config, start.vocabulary, backbone)
