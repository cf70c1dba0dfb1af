"""Metrics of reward models, alone or as an ensemble.

`evaluate` uses it for reward models, on a task or on a file of candidates.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.objectives import bins
from perlhf_jax.objectives import ensembles
from perlhf_jax.objectives import metrics
from perlhf_jax.stages import candidates as candidates_lib
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import score
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning

# Arrays by name, as one model answers.
Columns = Mapping[str, np.ndarray]
# A model, ready to answer.
Answerer = Callable[[], Columns]


@dataclasses.dataclass(frozen=True)
class RewardEvaluation:
  """How to evaluate a reward model; not used for policies.

  Attributes:
    ensemble: path of another reward model, or of several. They are evaluated
      together with the checkpoint: as the mean of their scores, the worst
      score, and the mean minus `penalty` standard deviations.
    penalty: number of standard deviations.
  """

  ensemble: str | Sequence[str] | None = ()
  penalty: Annotated[float, checks.NotNegative] = 1.0

  def __post_init__(self):
    checks.check_fields(self)
    ensemble = self.ensemble or ()
    if isinstance(ensemble, str):
      ensemble = (ensemble,)
    object.__setattr__(self, 'ensemble', tuple(ensemble))

  def check_unused(self, checkpoint: str) -> None:
    """Raises a ConfigError if a setting is given that only rewards use.

    Args:
      checkpoint: the evaluated policy, for the message.
    """
    if self.ensemble:
      raise errors.ConfigError(
        'ENSEMBLE: only the evaluation of reward models takes this, but '
        f'{checkpoint} writes text. For a policy, give several paths as '
        'REWARD_CHECKPOINT.'
      )


@runtime_checkable
class Questions(Protocol):
  """What reward models are asked.

  Attributes:
    score_columns: the columns of an answer that are scores.
  """

  score_columns: Sequence[str]

  def check(self, model: loaded_model.LoadedModel) -> None:
    """Raises a UserError if a model, without weights, cannot be asked."""

  def answerer(self, model: loaded_model.LoadedModel) -> Answerer:
    """Returns a function that asks a model; it does not keep the model."""

  def measure(self, columns: Columns) -> dict[str, Any]:
    """Returns the metrics of an answer."""

  def reasons(self, columns: Columns) -> Mapping[str, str]:
    """Returns why metrics may be undefined, as clauses."""

  def decisions(self, columns: Columns) -> np.ndarray:
    """Returns one number per example for what the model decides."""


def prepare(
  loaded: loaded_model.LoadedModel,
  config: RewardEvaluation,
  questions: Questions,
  mesh: partitioning.LogicalMesh,
) -> Callable[[], tuple[dict[str, Any], Mapping[str, str]]]:
  """Prepares a function that asks the models, one after the other.

  Args:
    loaded: the reward model.
    config: how to evaluate it.
    questions: what to ask.
    mesh: the mesh.

  Returns:
    A function to call once, which keeps none of the loaded weights. It returns
    the metrics, and why some may be undefined. The metrics are those of the
    model, and under `ensemble` those of the models together.

  Raises:
    UserError: a model cannot be used.
  """
  with multihost.together():
    for path in config.ensemble:
      questions.check(placed.require_reward_model(loading.peek(path), path))
  paths = [str(loaded.path), *config.ensemble]
  answerers = [questions.answerer(loaded)]

  def measure():
    # `pop` lets the memory of a model be freed after it has answered.
    answers = [answerers.pop()()]
    for path in config.ensemble:
      answers.append(questions.answerer(loading.load(path, mesh))())
    result = questions.measure(answers[0])
    if config.ensemble:
      result['ensemble'] = {
        'checkpoints': paths,
        'penalty': config.penalty,
        **_measure_together(questions, answers, config.penalty),
      }
    return result, questions.reasons(answers[0])

  return measure


def _measure_together(questions, answers, penalty) -> dict[str, Any]:
  """Returns metrics of an ensemble, of its members, and of their disagreement.

  `members` holds the metrics of each model, `mean`, `min` and `lower_bound`
  those of the combined scores. `disagreement` holds the mean spread of a score,
  `score_std`, and the share of examples on which not all models decide the
  same, `disputed`.
  """
  stacked = {
    name: np.stack([answer[name] for answer in answers])
    for name in questions.score_columns
  }
  combined = {
    name: ensembles.combine(scores, penalty) for name, scores in stacked.items()
  }
  result: dict[str, Any] = {
    how: questions.measure(
      {**answers[0], **{name: each[how] for name, each in combined.items()}}
    )
    for how in ('mean', 'min', 'lower_bound')
  }
  spreads = np.concatenate(
    [ensembles.spread(scores) for scores in stacked.values()]
  )
  decisions = np.stack([questions.decisions(answer) for answer in answers])
  result['disagreement'] = {
    'score_std': metrics.mean(spreads),
    'disputed': metrics.mean(ensembles.disputed(decisions)),
  }
  if 'chosen_scores' in stacked:
    differences = stacked['chosen_scores'] - stacked['rejected_scores']
    if np.isfinite(differences).all():
      result['disagreement']['bins'] = _by_disagreement(differences)
  result['members'] = [questions.measure(answer) for answer in answers]
  return result


def _by_disagreement(differences: np.ndarray) -> dict[str, Any]:
  """Returns the accuracy of the mean over bins of the members' spread.

  If members disagree where they are wrong, their spread warns of errors.

  Args:
    differences: [models, pairs] chosen minus rejected score.
  """
  spread = ensembles.spread(differences)
  mean = differences.mean(axis=0, dtype=np.float64)
  return bins.average(
    spread,
    metrics.order_credit(mean, np.zeros_like(mean)),
    bins.quantile_edges(spread),
  )


class TaskQuestions:
  """The examples of a task: pairs, or judged responses."""

  def __init__(
    self,
    examples: examples_lib.Examples,
    objective: kinds.Kind,
    image_size: int | None,
    batch_size: int,
    mesh: partitioning.LogicalMesh,
  ):
    """Takes the examples, as the model that is evaluated reads them."""
    self._examples = examples
    self._objective = objective
    self._image_size = image_size
    self._batch_size = batch_size
    self._mesh = mesh
    self.score_columns = reward_scoring.SCORE_COLUMNS[objective]

  def check(self, model: loaded_model.LoadedModel) -> None:
    """Raises a CheckpointError if a model reads other tokens or images."""
    ours = self._examples.vocabulary
    if model.vocabulary is not None and model.vocabulary != ours:
      raise errors.CheckpointError(
        f'The reward model {model.path} of ENSEMBLE reads {model.vocabulary}, '
        f'but the checkpoint reads {ours}. Evaluate models of one vocabulary '
        'together.'
      )
    image_size = self._image_size
    if model.config is not None and model.config.image_size != image_size:
      raise errors.CheckpointError(
        f'The reward model {model.path} of ENSEMBLE reads images of size '
        f'{model.config.image_size}, but the checkpoint of size {image_size}. '
        'Evaluate models of one image size together.'
      )

  def answerer(self, model: loaded_model.LoadedModel) -> Answerer:
    """Returns a function that scores all examples."""
    self._examples.check_ids(model.config.vocab_size)
    module, variables = placed.place_reward_model(model, self._mesh)

    def answer():
      return reward_scoring.collect(
        reward_scoring.make_scorer(module, self._mesh, self._objective),
        variables,
        {},
        input_pipeline.eval_batches(self._examples, self._batch_size),
      )

    return answer

  def measure(self, columns: Columns) -> dict[str, Any]:
    """See `reward_scoring.reward_metrics` and `reward_bins`."""
    return {
      **reward_scoring.reward_metrics(columns, self._objective),
      'bins': reward_scoring.reward_bins(columns, self._objective),
    }

  def reasons(self, columns: Columns) -> Mapping[str, str]:
    """See `reward_scoring.undefined_reasons`."""
    return reward_scoring.undefined_reasons(columns, self._objective)

  def decisions(self, columns: Columns) -> np.ndarray:
    """Returns which response of a pair is better, or whether one is good."""
    if self._objective is kinds.PAIRWISE:
      return np.sign(columns['chosen_scores'] - columns['rejected_scores'])
    return columns['scores'] > 0


class CandidateQuestions:
  """The lines of a file of candidates."""

  score_columns = ('scores',)

  def __init__(
    self,
    candidates: candidates_lib.Candidates,
    lengths: Mapping[str, int] | None,
    batch_size: int,
    mesh: partitioning.LogicalMesh,
  ):
    """Takes the lines, and TASK_FEATURE_LENGTHS if it is given."""
    self._candidates = candidates
    self._lengths = lengths
    self._batch_size = batch_size
    self._mesh = mesh
    self._ends = np.cumsum([len(each) for each in candidates.responses])[:-1]

  def check(self, model: loaded_model.LoadedModel) -> None:
    """Does nothing: each model reads the text with its own vocabulary."""

  def answerer(self, model: loaded_model.LoadedModel) -> Answerer:
    """Returns a function that scores all responses."""
    scorer = score.make_scorer(model, self._mesh)
    bare = model.without_weights()
    lengths = self._lengths or model.lengths
    limits = {
      kind: score.Limit(
        lengths.get(feature),
        'TASK_FEATURE_LENGTHS',
        "TASK_FEATURE_LENGTHS with '" + feature + "': {} (cuts longer ones)",
      )
      for kind, feature in (('prompt', 'inputs'), ('response', 'targets'))
    }

    def answer():
      scores = score.score_rows(
        bare,
        scorer,
        self._candidates.rows,
        self._candidates.responses,
        source=self._candidates.path,
        mesh=self._mesh,
        batch_size=self._batch_size,
        limits=limits,
      )
      return {'scores': np.concatenate([np.array(row) for row in scores])}

    return answer

  def measure(self, columns: Columns) -> dict[str, Any]:
    """See `candidates.Candidates.measure`."""
    return self._candidates.measure(self._by_line(columns))

  def reasons(self, columns: Columns) -> Mapping[str, str]:
    """Returns why a standard error may be undefined."""
    del columns
    return {'standard_error': 'a subset of one line has no spread'}

  def decisions(self, columns: Columns) -> np.ndarray:
    """Returns which response of each line scores highest."""
    return np.array([np.argmax(line) for line in self._by_line(columns)])

  def _by_line(self, columns) -> list[np.ndarray]:
    return np.split(columns['scores'], self._ends)
