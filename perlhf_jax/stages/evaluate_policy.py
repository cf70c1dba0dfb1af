"""Metrics of a policy on prompts; `evaluate` uses it for language models."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Annotated, Any

from etils import epath

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.objectives import best_of
from perlhf_jax.objectives import text_metrics
from perlhf_jax.rl import reward_sources
from perlhf_jax.rl import roles
from perlhf_jax.rl import shared_backbone
from perlhf_jax.rl import step as step_lib
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

_NUM_SAMPLES_SHOWN = 8

# Why a metric may be undefined, as a clause.
UNDEFINED = {
  'win_rate_standard_error': 'one response has no spread',
  'win_rate': 'a score that decides a comparison is not a number',
}


@dataclasses.dataclass(frozen=True)
class PolicyEvaluation:
  """How to evaluate a policy; not used for reward models.

  Attributes:
    rewards: what scores responses; None for the rewards of the training. If
      there are none, only the judge scores.
    judge: a `reward_sources.RewardFunction` that scores responses too
      (`judge_score`), and decides which response wins.
    baseline_checkpoint: a model to compare with, response by response.
    temperature: temperature of the sampling, 0 for greedy decoding; None for
      the temperature of the training, or 1 for a model that was not tuned by
      reinforcement learning.
    num_samples: responses per prompt. With more than one, `best_of` has the
      scores of the best of n responses, as the rewards choose it.
    seed: seed of the sampling.
  """

  rewards: reward_sources.RewardSources | None = None
  judge: Any = None
  baseline_checkpoint: str | None = None
  temperature: Annotated[float | None, checks.NotNegative] = None
  num_samples: Annotated[int, checks.AtLeastOne] = 1
  seed: Annotated[int, checks.NotNegative] = 0

  def __post_init__(self):
    checks.check_fields(self)
    reward_sources.check_judge(self.judge)
    if self.num_samples > 1 and self.baseline_checkpoint is not None:
      raise errors.ConfigError(
        f'NUM_SAMPLES is {self.num_samples} and BASELINE_CHECKPOINT is given; '
        'a win rate compares one response per prompt. Give one of the two.'
      )

  def check_unused(self, checkpoint: str) -> None:
    """Raises a ConfigError if a setting is given that only policies use.

    Args:
      checkpoint: the evaluated reward model, for the message.
    """
    rewards = self.rewards or reward_sources.RewardSources()
    settings = {
      'BASELINE_CHECKPOINT': self.baseline_checkpoint,
      'JUDGE': self.judge,
      'TEMPERATURE': self.temperature,
      'NUM_SAMPLES': self.num_samples if self.num_samples > 1 else None,
      'REWARD_CHECKPOINT': rewards.checkpoints or None,
      'REWARD_FUNCTIONS': rewards.functions or None,
    }
    given = [name for name, value in settings.items() if value is not None]
    if given:
      raise errors.ConfigError(
        f'{", ".join(given)}: only the evaluation of policies takes this, but '
        f'{checkpoint} is a reward model. Leave it out, or give the '
        'checkpoint of a policy.'
      )


def prepare(
  loaded: loaded_model.LoadedModel,
  config: PolicyEvaluation,
  examples: examples_lib.Examples,
  *,
  response_length: int,
  batch_size: int,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None = None,
) -> Callable[[], tuple[dict[str, Any], Mapping[str, str]]]:
  """Prepares a function that answers every prompt and evaluates the answers.

  Args:
    loaded: the policy.
    config: how to evaluate it.
    examples: examples of any kind; with demonstrations, responses are compared
      with the targets.
    response_length: the most tokens of a response.
    batch_size: prompts per batch.
    mesh: the mesh.
    base_checkpoint: the current path of the reference, if it was moved.

  Returns:
    A function to call once, which keeps none of the loaded weights. It returns
    the metrics, and why some may be undefined. The metrics are means over the
    responses (`score`, `kl_k1`, `kl_k3`, `judge_score`, `response_length`,
    `truncated`; `exact_match` and ROUGE with targets; `win_rate` and its parts
    with a baseline), `best_of` with several samples, and the first `samples`.

  Raises:
    UserError: a checkpoint or a reward function cannot be used.
  """
  trained = _policy_metadata(loaded)
  temperature = config.temperature
  if temperature is None:
    temperature = trained.get('temperature', 1.0)
  rewards, recorded = config.rewards or reward_sources.RewardSources(), []
  if not (rewards.checkpoints or rewards.functions):
    rewards = reward_sources.RewardSources(
      reduce=trained.get('reduce', 'mean'), time_limit=rewards.time_limit
    )
    recorded = trained.get('reward_checkpoints', [])
  sampling = sampler.SamplingConfig(
    response_length, temperature, num_samples=config.num_samples
  )
  has_score = bool(recorded or rewards.checkpoints or rewards.functions)
  _check_num_samples(sampling, has_score=has_score)
  scoring = rewards.scoring(examples.vocabulary, mesh)
  recorded_in = loaded.path

  def load_rewards(shared):
    def load(path):
      return roles.load_reward_model(path, shared, mesh, sampling.max_length)

    if recorded:
      return _load_recorded(recorded, recorded_in, load)
    return [load(path) for path in rewards.checkpoints]

  def answer(answerer):
    return policy_evaluation.answer(
      step_lib.Rollout(answerer.models, sampling, config.seed, mesh),
      scoring if has_score else None,
      {'policy': answerer.policy},
      answerer.frozen,
      examples,
      batch_size=batch_size,
      mesh=mesh,
      judge=config.judge,
      time_limit=rewards.time_limit,
      decode=scoring.decode,
    )

  policy = _place(loaded, mesh, base_checkpoint)
  answerers = [policy.with_rewards(load_rewards, mesh)]
  if config.baseline_checkpoint is not None:
    if config.judge is None and not has_score:
      raise errors.ConfigError(
        'A win rate needs a judge: set JUDGE, REWARD_CHECKPOINT or '
        'REWARD_FUNCTIONS.'
      )
    baseline = _load_baseline(
      config.baseline_checkpoint, examples.vocabulary, mesh
    )
    answerers.append(_place(baseline, mesh))

  def measure():
    # `pop` lets the memory of an answerer be freed after it has answered.
    answers = answer(answerers.pop(0))
    result = {
      'temperature': temperature,
      'responses': len(answers.responses),
      **answers.means(),
    }
    # Judged responses have targets too, but these may be bad.
    if examples.kind.shows_answers:
      rows = range(len(examples))
      targets = [
        examples.texts(row)['targets']
        for row in rows
        for _ in range(config.num_samples)
      ]
      texts = answers.responses
      result['exact_match'] = text_metrics.exact_match(texts, targets)
      result.update(text_metrics.rouge(texts, targets))
    if config.num_samples > 1:
      result['best_of'] = _best_of(answers, config.num_samples)
    if answerers:
      name = 'judge_score' if config.judge is not None else 'score'
      theirs = answer(answerers.pop(0).with_rewards(load_rewards, mesh))
      result.update(_compare(answers, theirs, name, config.baseline_checkpoint))
    result['samples'] = list(answers.rows(_NUM_SAMPLES_SHOWN))
    return result, UNDEFINED

  return measure


def _check_num_samples(
  sampling: sampler.SamplingConfig, *, has_score: bool
) -> None:
  """Raises a ConfigError if the best of several samples makes no sense."""
  if sampling.num_samples == 1:
    return
  if not sampling.temperature:
    raise errors.ConfigError(
      f'NUM_SAMPLES is {sampling.num_samples} and the temperature is 0: all '
      'responses to a prompt would be equal. Set TEMPERATURE above 0.'
    )
  if not has_score:
    raise errors.ConfigError(
      f'NUM_SAMPLES is {sampling.num_samples}, and nothing says which response '
      'is the best: set REWARD_CHECKPOINT or REWARD_FUNCTIONS.'
    )


def _best_of(answers, num_samples) -> dict[str, Any]:
  """Returns the curve of the best of n samples; see `best_of.curve`."""
  shape = -1, num_samples
  names = 'score', 'judge_score', 'response_length'
  return best_of.curve(
    answers.columns['score'].reshape(shape),
    {
      name: answers.columns[name].reshape(shape)
      for name in names
      if name in answers.columns
    },
  )


def _policy_metadata(loaded: loaded_model.LoadedModel) -> dict[str, Any]:
  metadata = loaded.metadata
  return dict(metadata.policy or {}) if metadata is not None else {}


def _load_baseline(
  path: str, vocabulary: Any, mesh: partitioning.LogicalMesh
) -> loaded_model.LoadedModel:
  """Loads the baseline that a policy is compared with.

  Raises:
    CheckpointError: it is a reward model, or has another vocabulary.
  """
  loaded = loading.load(path, mesh)
  if loaded.is_reward_model:
    raise errors.CheckpointError(
      f'BASELINE_CHECKPOINT {path} is a reward model, which cannot write '
      'text; give an SFT checkpoint or a policy.'
    )
  theirs = loaded.vocabulary
  if theirs != vocabulary:
    raise errors.CheckpointError(
      f'BASELINE_CHECKPOINT {path} writes {theirs}, but the policy '
      f'{vocabulary}; compare models of one vocabulary.'
    )
  return loaded


def _load_recorded(recorded, step, load) -> list[loaded_model.LoadedModel]:
  """Loads the reward models that a policy was trained against.

  Args:
    recorded: the policy's records of them.
    step: the step folder of the policy.
    load: loads the reward model at a path.
  """
  model_dir = step_files.model_dir_of(epath.Path(step))
  try:
    return [
      recorded_paths.load(
        each,
        recorded_paths.candidates(each, model_dir),
        load,
        lambda reward_model: reward_model.fingerprint,
      )
      for each in recorded
    ]
  except errors.CheckpointError as error:
    raise errors.CheckpointError(
      f'{error} The policy was trained against it; if it has moved, set '
      'REWARD_CHECKPOINT.'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Answerer:
  """A language model on the mesh, and its reference.

  Attributes:
    models: the modules, without a value model.
    policy: variables of the policy.
    frozen: the frozen `params`, and the variables of `rewards`.
    shared: the model that the frozen `params` belong to, without weights.
  """

  models: shared_backbone.Models
  policy: Mapping[str, Any]
  frozen: Mapping[str, Any]
  shared: loaded_model.LoadedModel

  def with_rewards(self, load_rewards, mesh) -> '_Answerer':
    """Adds the reward models that `load_rewards` loads."""
    modules, variables = roles.place_reward_models(
      load_rewards(self.shared), self.shared, mesh
    )
    return dataclasses.replace(
      self,
      models=dataclasses.replace(self.models, rewards=modules),
      frozen={**self.frozen, 'rewards': variables},
    )


def _place(loaded, mesh, moved_to=None) -> _Answerer:
  """Puts a language model and its reference on the mesh."""
  reference = _reference(loaded, mesh, moved_to)
  if reference is None:
    model, policy = placed.place(loaded, mesh)
    module, frozen = None, {'params': policy['params']}
  else:
    if loaded.lora is not None:  # The reference holds its `params`.
      loaded = loaded.on_shared(reference.config)
    model, policy = placed.place(loaded, mesh)
    module, frozen = placed.place(reference, mesh)
  models = shared_backbone.Models(
    policy=model, value=None, reference=module, rewards=()
  )
  shared = (reference or loaded.backbone()).without_weights()
  return _Answerer(models, policy, {**frozen, 'rewards': ()}, shared)


def _reference(
  loaded: loaded_model.LoadedModel,
  mesh: partitioning.LogicalMesh,
  moved_to: str | None = None,
) -> loaded_model.LoadedModel | None:
  """Returns the reference of a policy; None for other models.

  Args:
    loaded: the policy, or another model.
    mesh: where to put the weights of the reference.
    moved_to: the current path of the reference.

  Raises:
    CheckpointError: the reference is missing, or its fingerprint has changed.
  """
  recorded = _policy_metadata(loaded).get('reference')
  if recorded is None:
    return None
  if loaded.lora is not None:
    return loaded.backbone()
  return loading.load_recorded(
    recorded,
    'The policy',
    loaded.path,
    'reference',
    mesh,
    moved_to,
  )


def _compare(answers, baseline, name, path) -> dict[str, Any]:
  rate = text_metrics.win_rate(answers.columns[name], baseline.columns[name])
  return {
    'baseline': {'checkpoint': path, **baseline.means()},
    'judged_by': name,
    'win_rate': rate.win_rate,
    'win_rate_standard_error': rate.standard_error,
    'wins': rate.wins,
    'ties': rate.ties,
    'losses': rate.losses,
  }
