"""Reinforcement learning of a policy against a reward, with LoRA or in full.

Paper section 2.2: the policy starts from the SFT checkpoint, which stays the
reference; J = (1 - β) · score - β · KL(policy ‖ reference).
"""

import dataclasses
from typing import Annotated, Any

import jax

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import versions
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.models import tuned_params
from perlhf_jax.rl import alarms as alarms_lib
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import gradients
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import rewards as rewards_lib
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step as step_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import model_dirs
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import reward_sources
from perlhf_jax.stages import roles as roles_lib
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import setup_run
from perlhf_jax.stages import starts
from perlhf_jax.training import checkpoints
from perlhf_jax.training import multihost
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_log
from perlhf_jax.training import train_loop

SELECTION = train_loop.Selection('score')
SAMPLES_FILE = 'samples.jsonl'
_NUM_LOGGED = 8

Temperature = Annotated[
  float,
  checks.Range(
    above=0, hint='a policy learns from samples; the paper has 0.7 to 1'
  ),
]


@checks.checked
def train_policy(
  *,
  model_dir: str,
  dataset: input_pipeline.DatasetConfig,
  eval_dataset: input_pipeline.DatasetConfig,
  loop: train_loop.LoopConfig,
  algorithm: algorithm_lib.Algorithm,
  rewards: reward_sources.RewardSources,
  policy_optimizer: optimizers.Optimizer,
  value_optimizer: optimizers.Optimizer,
  lora: lora_lib.LoraConfig | None,
  initial_checkpoint_path: str | None,
  kl_beta: algorithm_lib.KlBeta,
  temperature: Temperature = 1.0,
  num_samples: Annotated[int, checks.AtLeastOne] = 1,
  rollout_parts: Annotated[int, checks.AtLeastOne] = 1,
  model: t5_config.T5Config | None = None,
  vocabulary: Any = None,
  shaping: rewards_lib.RewardShaping | None = None,
  controller: kl_controller.AdaptiveKl | None = None,
  alarms: alarms_lib.Alarms | None = None,
  judge: Any = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
) -> state_lib.PolicyState:
  """Tunes a policy into MODEL_DIR, resuming what it finds there.

  A step samples `num_samples` responses to each of `dataset.batch_size`
  prompts at `temperature` and learns from them. The checkpoint with the best
  mean score on the validation prompts is kept beside the newest.

  Args:
    model_dir: where checkpoints, metrics and samples go.
    dataset: training prompts; of tasks that have more, the prompts are taken.
    eval_dataset: validation prompts.
    loop: lengths and periods; a step is a rollout.
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    rewards: what scores responses.
    policy_optimizer: optimizer and schedule of the policy.
    value_optimizer: of the value model, where the algorithm has one.
    lora: adapters of policy and value model; None for full tuning.
    initial_checkpoint_path: SFT checkpoint or Hugging Face T5 directory; it
      is the reference too.
    kl_beta: β in [0, 1].
    temperature: of the sampling, above 0. The policy that is trained is the
      one that samples, temperature included.
    num_samples: responses of each prompt.
    rollout_parts: equal parts in which a batch is sampled, one after the other,
      so that the KV caches of one at a time are held.
    model: architecture; that of the initial checkpoint if None.
    vocabulary: tokenizer; that of the initial checkpoint if None.
    shaping: normalisation, clipping and penalties of scores.
    controller: adapts β to a target KL; None keeps it.
    alarms: thresholds of warnings.
    judge: a `reward_sources.RewardFunction` that is only reported, as
      `judge_score`.
    partitioner: how the model and batches are split among devices.

  Returns:
    The last state.

  Raises:
    UserError: any input that cannot be used; raised before training starts,
      or, by a reward function, at a step: the state before it is saved.
  """
  mesh = partitioner.make_mesh()
  algorithm_lib.check_kl_beta(kl_beta, controller is not None)
  algorithm_lib.check_algorithm(algorithm, num_samples)
  gradients.check_separable(algorithm)
  rewards.check_any()
  reward_sources.check_judge(judge)
  sampling = sampler.SamplingConfig(
    max_length=policy_evaluation.response_length(dataset.task_feature_lengths),
    temperature=temperature,
    num_samples=num_samples,
    parts=rollout_parts,
  )
  partitioning.check_batch_size(
    dataset.batch_size, mesh, loop.accumulation_steps, algorithm.minibatches
  )
  partitioning.check_batch_size(eval_dataset.batch_size, mesh)
  for batch_size in dataset.batch_size, eval_dataset.batch_size:
    partitioning.check_parts(batch_size, mesh, rollout_parts)
  directory = model_dirs.prepare(model_dir, loop.train_steps)
  dataset = directory.as_begun(dataset)
  start = _resolve_start(model, vocabulary, lora, initial_checkpoint_path, mesh)
  reward_models = [
    roles_lib.load_reward_model(path, start.backbone, mesh, sampling.max_length)
    for path in rewards.checkpoints
  ]
  with multihost.together():
    examples = start.load_examples(dataset).prompts()
    eval_examples = start.load_examples(eval_dataset)
  roles = roles_lib.make_roles(
    start,
    lora,
    mesh,
    loop.seed,
    needs_value=algorithm.needs_value,
    rewards=reward_models,
  )
  metadata = _describe(
    start,
    lora,
    dataset,
    examples,
    objective=type(algorithm).__name__.lower(),
    seed=loop.seed,
    policy={
      'reference': start.backbone.describe(directory.path),
      'reward_checkpoints': [c.describe(directory.path) for c in reward_models],
      'reduce': rewards.reduce,
      'temperature': temperature,
      'num_samples': num_samples,
      'kl_beta': kl_beta,
    },
  )

  scoring = rewards.scoring(start.vocabulary, mesh)
  settings = settings_lib.Settings(
    algorithm=algorithm,
    sampling=sampling,
    kl_beta=kl_beta,
    shaping=shaping or rewards_lib.RewardShaping(),
    controller=controller,
    seed=loop.seed,
    accumulation_steps=loop.accumulation_steps,
  )
  step = step_lib.Step(
    roles.models,
    scoring,
    settings,
    mesh,
    trainable=roles.trainable,
    trainable_shardings=roles.trainable_shardings,
    optimizer_configs={'policy': policy_optimizer, 'value': value_optimizer},
    train_steps=loop.train_steps,
  )
  start.backbone.release()
  manager = checkpoints.CheckpointManager(
    directory.path, run_metadata.to_json(metadata), keep_best=loop.keep_best
  )
  state = directory.resume(
    manager, step.create(roles.trainable), step.shardings, metadata
  )
  return train_loop.train(
    loop,
    model_dir=directory.path,
    manager=manager,
    step=step,
    state=state,
    frozen=roles.frozen,
    batches=setup_run.train_batches(examples, mesh),
    batch_size=dataset.batch_size * num_samples,
    evaluate=_evaluation(
      roles,
      scoring,
      eval_examples,
      sampling=sampling,
      batch_size=eval_dataset.batch_size,
      mesh=mesh,
      seed=loop.seed,
      judge=judge,
      log=step_log.StepLog(directory.path / SAMPLES_FILE, int(state.step))
      if jax.process_index() == 0
      else None,
    ),
    selection=SELECTION,
    mesh=mesh,
    summary={'trainable_fraction': roles.trainable_fraction},
    check=(alarms or alarms_lib.Alarms()).check,
    describe=setup_run.describe_batches(examples),
  )


def _resolve_start(model, vocabulary, lora, path, mesh) -> starts.Start:
  if path is None:
    raise errors.ConfigError(
      'A policy starts from a language model: set INITIAL_CHECKPOINT_PATH to '
      'a MODEL_DIR of perlhf train_sft or a Hugging Face T5 directory.'
    )
  for name, config in (('T5Config', model), ('LoraConfig', lora)):
    if config is not None and config.dropout_rate:
      raise errors.ConfigError(
        f'{name}.dropout_rate is {config.dropout_rate}, but reinforcement '
        'learning has no dropout: the policy that learns would not be the one '
        'that sampled. Set it to 0 (DROPOUT_RATE for the model).'
      )
  return starts.resolve_start(model, vocabulary, lora, path, mesh)


def _describe(
  start, lora, dataset, examples, *, objective, seed, policy
) -> run_metadata.RunMetadata:
  is_lora = lora is not None
  keeps_any = tuned_params.keeps_any(start.config, lora=is_lora)
  return run_metadata.RunMetadata(
    kind=run_metadata.POLICY,
    objective=objective,
    tuning='lora' if is_lora else 'full',
    model=start.config,
    lora=lora,
    vocabulary=start.vocabulary,
    base=policy['reference'] if keeps_any else None,
    task=dataset.mixture_or_task_name,
    task_feature_lengths=examples.feature_lengths(dataset.task_feature_lengths),
    truncate_prompt=dataset.truncate_prompt,
    data_order=setup_run.describe_data(dataset, seed),
    policy=policy,
    module=dataset.module,
    versions=versions.describe(),
  )


def _evaluation(
  roles, scoring, examples, *, sampling, batch_size, mesh, seed, judge, log
):
  """Returns a function from a state to metrics, which logs samples."""
  rollout = step_lib.Rollout(
    roles.models, dataclasses.replace(sampling, num_samples=1), seed + 1, mesh
  )

  def evaluate(state):
    answers = policy_evaluation.answer(
      rollout,
      scoring,
      state.trainable,
      roles.frozen,
      examples,
      batch_size=batch_size,
      mesh=mesh,
      judge=judge,
      decode=scoring.decode,
    )
    if log is not None:
      step = int(state.step)
      log.append({'step': step, **row} for row in answers.rows(_NUM_LOGGED))
    return answers.means()

  return evaluate
