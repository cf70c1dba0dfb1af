"""Reinforcement learning of a policy against a reward, with LoRA or in full.

Paper section 2.2: the policy starts from the SFT checkpoint, which stays the
reference; J = (1 - β) · score - β · KL(policy ‖ reference).
"""

import dataclasses
import functools
from typing import Annotated, Any

import jax

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import checks
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.rl import alarms as alarms_lib
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.rl import gradients
from perlhf_jax.rl import kl_controller
from perlhf_jax.rl import reward_sources
from perlhf_jax.rl import rewards as rewards_lib
from perlhf_jax.rl import roles as roles_lib
from perlhf_jax.rl import settings as settings_lib
from perlhf_jax.rl import state as state_lib
from perlhf_jax.rl import step as step_lib
from perlhf_jax.runs import run as run_lib
from perlhf_jax.runs import stage
from perlhf_jax.runs import whole_run
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import policy_start
from perlhf_jax.stages import sample_images
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


@whole_run.guarded
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
  base_checkpoint: str | None = None,
  shaping: rewards_lib.RewardShaping | None = None,
  controller: kl_controller.AdaptiveKl | None = None,
  importance_cap: settings_lib.ImportanceCap = None,
  alarms: alarms_lib.Alarms | None = None,
  judge: Any = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  accept_changes: bool = False,
) -> state_lib.PolicyState:
  """Tunes a policy in MODEL_DIR, and resumes a run that it finds there.

  A step samples `num_samples` responses to each of `dataset.batch_size`
  prompts at `temperature` and learns from them. The run keeps the newest
  checkpoint and the one with the best mean score on the validation prompts.

  Args:
    model_dir: where checkpoints, metrics and samples go.
    dataset: training prompts; only the prompts of a task are used.
    eval_dataset: validation prompts.
    loop: lengths and periods; a step is a rollout.
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    rewards: what scores responses.
    policy_optimizer: optimizer and schedule of the policy.
    value_optimizer: optimizer and schedule of the value model, if the algorithm
      has one.
    lora: adapters of policy and value model; None for full tuning.
    initial_checkpoint_path: a MODEL_DIR, one of its steps, or a directory of
      any format that `perlhf inspect` knows; it is also the reference.
    kl_beta: β in [0, 1].
    temperature: temperature of the sampling, above 0; training uses the same
      temperature.
    num_samples: responses per prompt.
    rollout_parts: number of equal parts of a batch that are sampled one after
      the other, so that only one part's KV caches are in memory.
    model: architecture; None for the initial checkpoint's.
    vocabulary: tokenizer; None for the initial checkpoint's.
    base_checkpoint: path of an initial adapter's base, if it is not where the
      adapter records it.
    shaping: normalisation, clipping and penalties of scores.
    controller: adapts β to a target KL; None keeps β fixed.
    importance_cap: the largest weight of a token, of which sampler and trainer
      compute different probabilities; None does not weigh tokens.
    alarms: thresholds of warnings.
    judge: a `reward_sources.RewardFunction` that is only reported, as
      `judge_score`.
    partitioner: how to shard the model and batches over devices.
    accept_changes: whether an existing run may resume with other data, rewards
      or settings; its checkpoints record the changes.

  Returns:
    The last state.

  Raises:
    UserError: an input cannot be used; raised before training starts. A reward
      function may raise it at a step; the state before that step is saved.
  """
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
  policy_start.check(
    model,
    lora,
    initial_checkpoint_path,
    with_dropout=(
      'the trained policy would differ from the policy that sampled'
    ),
  )
  for optimizer in policy_optimizer, value_optimizer:
    optimizers.check_adapted(optimizer, lora)

  def make(start, examples, mesh):
    del examples  # Of any kind: only the prompts are used.
    return roles_lib.make_roles(
      start,
      lora,
      mesh,
      loop.seed,
      needs_value=algorithm.needs_value,
      rewards=[
        roles_lib.load_reward_model(path, start, mesh, sampling.max_length)
        for path in rewards.checkpoints
      ],
    )

  prepared = stage.prepare(
    make,
    model_dir=model_dir,
    dataset=dataset,
    eval_dataset=eval_dataset,
    loop=loop,
    lora=lora,
    initial_checkpoint_path=initial_checkpoint_path,
    base_checkpoint=base_checkpoint,
    model=model,
    vocabulary=vocabulary,
    partitioner=partitioner,
    accept_changes=accept_changes,
    minibatches=algorithm.minibatches,
    rollout_parts=rollout_parts,
    prompts_alone=True,
  )
  roles, start, mesh = prepared.made, prepared.start, prepared.mesh
  folder = prepared.directory.path
  scoring = rewards.scoring(start.vocabulary, mesh)
  settings = settings_lib.Settings(
    algorithm=algorithm,
    sampling=sampling,
    kl_beta=kl_beta,
    shaping=shaping or rewards_lib.RewardShaping(),
    controller=controller,
    seed=loop.seed,
    accumulation_steps=loop.accumulation_steps,
    importance_cap=importance_cap,
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
  return stage.train(
    prepared,
    run_lib.Steps(step.create, step.shardings, step),
    stage.describe(
      prepared,
      kind=run_metadata.POLICY,
      objective=type(algorithm).__name__.lower(),
      settings={
        'algorithm': algorithm,
        'policy_optimizer': policy_optimizer,
        **(
          {'value_optimizer': value_optimizer} if algorithm.needs_value else {}
        ),
        'shaping': settings.shaping,
        'controller': controller,
        'importance_cap': importance_cap,
        'model_weight': rewards.model_weight,
        'reward_functions': rewards.functions,
        'function_weights': rewards.function_weights,
      },
      policy={
        'reference': start.describe(folder),
        'reward_checkpoints': [
          each.describe(folder) for each in roles.reward_models
        ],
        'reduce': rewards.reduce,
        'temperature': temperature,
        'num_samples': num_samples,
        'kl_beta': kl_beta,
      },
    ),
    evaluate=_evaluation(
      prepared,
      scoring,
      sampling=sampling,
      batch_size=eval_dataset.batch_size,
      judge=judge,
      time_limit=rewards.time_limit,
    ),
    selection=SELECTION,
    num_samples=num_samples,
    check=(alarms or alarms_lib.Alarms()).check,
  )


def _evaluation(prepared, scoring, *, sampling, batch_size, judge, time_limit):
  """Returns a function from a state to metrics, which logs samples."""
  roles, loop = prepared.made, prepared.loop
  rollout = step_lib.Rollout(
    roles.models,
    dataclasses.replace(sampling, num_samples=1),
    loop.seed + 1,
    prepared.mesh,
  )

  @functools.cache
  def open_log():
    # Opened at first use, when MODEL_DIR is known to be this run's.
    path = prepared.directory.path / SAMPLES_FILE
    log = step_log.StepLog(path, prepared.directory.step or 0)
    log.warn_of_gaps(loop.eval_period)
    return log

  def evaluate(state):
    answers = policy_evaluation.answer(
      rollout,
      scoring,
      state.trainable,
      roles.frozen,
      prepared.eval_examples,
      batch_size=batch_size,
      mesh=prepared.mesh,
      judge=judge,
      time_limit=time_limit,
      decode=scoring.decode,
    )
    if jax.process_index() == 0:
      step = int(state.step)
      rows = sample_images.write(
        answers.rows(_NUM_LOGGED),
        prepared.eval_examples,
        prepared.directory.path,
      )
      open_log().append({'step': step, **row} for row in rows)
    return answers.means()

  return evaluate
