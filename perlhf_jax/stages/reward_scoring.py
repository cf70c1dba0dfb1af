"""Scores of whole data sets, and the metrics of a reward model on them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import tree_paths
from perlhf_jax.core import typing
from perlhf_jax.data import feature_converters
from perlhf_jax.data import kinds
from perlhf_jax.models import prompts
from perlhf_jax.models import reward_model
from perlhf_jax.objectives import bins
from perlhf_jax.objectives import metrics
from perlhf_jax.objectives import pair_metrics
from perlhf_jax.training import compiled_step
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# (trainable, frozen, host batch) -> {name: host array, first axis batch}
Scorer = Callable[
  [Mapping[str, Any], Mapping[str, Any], Mapping[str, np.ndarray]],
  dict[str, np.ndarray],
]

SCORE_COLUMNS: Mapping[kinds.Kind, tuple[str, ...]] = {
  kinds.PAIRWISE: ('chosen_scores', 'rejected_scores'),
  kinds.POINTWISE: ('scores',),
}


def pair_scores(
  model: reward_model.RewardModel,
  variables: Mapping[str, Any],
  batch: typing.Batch,
  dropout_rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns chosen and rejected scores `[batch]`; encodes prompts once."""
  scores = model.scores(
    variables,
    prompts.of_batch(batch),
    jnp.stack([batch['chosen_tokens'], batch['rejected_tokens']], axis=1),
    jnp.stack([batch['chosen_mask'], batch['rejected_mask']], axis=1),
    dropout_rng=dropout_rng,
  )
  return scores[:, 0], scores[:, 1]


def point_scores(
  model: reward_model.RewardModel,
  variables: Mapping[str, Any],
  batch: typing.Batch,
  dropout_rng: jax.Array | None = None,
) -> jax.Array:
  """Returns scores `[batch]` of single responses."""
  return model.score(
    variables,
    prompts.of_batch(batch),
    batch['response_tokens'],
    batch['response_mask'],
    dropout_rng=dropout_rng,
  )


def _pair_columns(model, variables, batch) -> dict[str, jax.Array]:
  chosen, rejected = pair_scores(model, variables, batch)
  return {'chosen_scores': chosen, 'rejected_scores': rejected}


def _point_columns(model, variables, batch) -> dict[str, jax.Array]:
  return {'scores': point_scores(model, variables, batch)}


def make_scorer(
  model: reward_model.RewardModel,
  mesh: partitioning.LogicalMesh,
  objective: kinds.Kind,
) -> Scorer:
  """Returns a compiled function that scores batches for an objective."""
  columns = {
    kinds.PAIRWISE: _pair_columns,
    kinds.POINTWISE: _point_columns,
  }[objective]

  def function(trainable, frozen, batch):
    return columns(model, tree_paths.overlay(frozen, trainable), batch)

  return compile_scorer(function, mesh, f'{objective.name} scoring')


def compile_scorer(
  function: Callable[[Any, Any, Any], Mapping[str, jax.Array]],
  mesh: partitioning.LogicalMesh,
  name: str,
) -> Scorer:
  """Compiles a function of batches, each row of which is an example.

  Args:
    function: `(trainable, frozen, batch) -> {name: array [batch]}`.
    mesh: the mesh.
    name: what it does, for messages.
  """
  compiled = compiled_step.CompiledStep(
    function,
    mesh,
    name=name,
    out_shardings=partitioning.batch_sharding(mesh),
  )

  def scorer(trainable, frozen, batch):
    scores = compiled(trainable, frozen, placement.put_batch(batch, mesh))
    return {k: placement.to_host(v) for k, v in scores.items()}

  return scorer


def collect(
  scorer: Scorer,
  trainable: Mapping[str, Any],
  frozen: Mapping[str, Any],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Scores batches; returns arrays over all examples, in the data set's order.

  Also returns `labels` or `margins`, and the `*_lengths` of responses in
  tokens.

  Args:
    scorer: the result of `make_scorer`.
    trainable: weights.
    frozen: weights.
    batches: from `input_pipeline.eval_batches`.
  """
  collected: dict[str, list[np.ndarray]] = {}
  for batch in batches:
    batch = dict(batch)
    columns = {
      feature_converters.EXAMPLE_ROWS: batch.pop(
        feature_converters.EXAMPLE_ROWS
      )
    }
    columns.update(scorer(trainable, frozen, batch))
    for name in ('labels', 'margins'):
      if name in batch:
        columns[name] = batch[name]
    for name in ('chosen', 'rejected', 'response'):
      if f'{name}_mask' in batch:
        columns[f'{name}_lengths'] = batch[f'{name}_mask'].sum(axis=1)
    for name, column in columns.items():
      collected.setdefault(name, []).append(column[batch['example_mask']])
  columns = {n: np.concatenate(parts) for n, parts in collected.items()}
  order = np.argsort(columns.pop(feature_converters.EXAMPLE_ROWS))
  return {name: column[order] for name, column in columns.items()}


@np.errstate(invalid='ignore')  # A NaN score may make metrics NaN.
def reward_metrics(
  columns: Mapping[str, np.ndarray], objective: kinds.Kind
) -> dict[str, float]:
  """Returns the metrics of an objective from `collect`'s columns.

  An undefined metric is NaN; `undefined_reasons` says why.
  """
  functions = {
    kinds.PAIRWISE: _pair_metrics,
    kinds.POINTWISE: _point_metrics,
  }
  return functions[objective](columns)


def _pair_metrics(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
  chosen, rejected = columns['chosen_scores'], columns['rejected_scores']
  lengths = columns['chosen_lengths'], columns['rejected_lengths']
  by_length = metrics.pairwise_accuracy_by_length(chosen, rejected, *lengths)
  return {
    'pairwise_accuracy': metrics.pairwise_accuracy(chosen, rejected),
    'loss': float(np.mean(np.logaddexp(0.0, -(chosen - rejected)))),
    'margin': float(np.mean(chosen - rejected)),
    **{f'pairwise_accuracy/{k}': v for k, v in by_length.items()},
    **pair_metrics.longer_shares(chosen, rejected, *lengths),
    'calibration_error': pair_metrics.calibration_error(chosen, rejected),
    'score_length_correlation': metrics.pearson_correlation(
      np.concatenate([chosen, rejected]), np.concatenate(lengths)
    ),
  }


def _point_metrics(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
  scores, labels = columns['scores'], columns['labels']
  return {
    'roc_auc': metrics.roc_auc(scores, labels),
    'accuracy': metrics.accuracy(scores, labels),
    'balanced_accuracy': metrics.balanced_accuracy(scores, labels),
    'loss': float(np.mean(np.logaddexp(0.0, scores) - labels * scores)),
    'calibration_error': metrics.expected_calibration_error(scores, labels),
    'score_length_correlation': metrics.pearson_correlation(
      scores, columns['response_lengths']
    ),
  }


def reward_bins(
  columns: Mapping[str, np.ndarray], objective: kinds.Kind
) -> dict[str, dict[str, list[Any]]] | None:
  """Returns averages over bins of examples, for plots.

  Args:
    columns: the result of `collect`.
    objective: `kinds.PAIRWISE` or `kinds.POINTWISE`.

  Returns:
    For pairs see `pair_metrics.accuracy_bins`. For judged responses the
    `reliability` of σ(score). None if a score is not a finite number.
  """
  if not np.isfinite(_scores(columns, objective)).all():
    return None
  if objective is kinds.PAIRWISE:
    names = 'chosen_scores', 'rejected_scores'
    names = *names, 'chosen_lengths', 'rejected_lengths', 'margins'
    return pair_metrics.accuracy_bins(*(columns[name] for name in names))
  scores, labels = columns['scores'], columns['labels']
  probabilities = metrics.sigmoid(scores)
  return {'reliability': bins.reliability(probabilities, labels)}


def _scores(columns, objective) -> np.ndarray:
  """Returns the scores of all responses."""
  return np.concatenate([columns[name] for name in SCORE_COLUMNS[objective]])


def undefined_reasons(
  columns: Mapping[str, np.ndarray], objective: kinds.Kind
) -> dict[str, str]:
  """Returns the reasons why metrics may be undefined, as clauses.

  Args:
    columns: the result of `collect`.
    objective: `kinds.PAIRWISE` or `kinds.POINTWISE`.

  Returns:
    A reason for each of `reward_metrics` that is NaN or infinite, and perhaps
    for others.
  """
  scores = _scores(columns, objective)
  bad = int(np.sum(~np.isfinite(scores)))
  if bad:
    reason = f'{bad} of {scores.size} scores are not finite numbers'
    return dict.fromkeys(reward_metrics(columns, objective), reason)
  is_constant = bool(np.all(scores == scores[0]))
  of_what = 'scores are' if is_constant else 'responses have'
  same = 'equal' if is_constant else 'the same length'
  reasons = {'score_length_correlation': f'all {of_what} {same}'}
  if objective is kinds.PAIRWISE:
    return reasons | {
      'pairwise_accuracy/chosen_longer': 'no chosen response is the longer one',
      'pairwise_accuracy/chosen_shorter': 'no chosen response is the shorter',
      'pairwise_accuracy/equal_length': 'no pair has responses of one length',
      **dict.fromkeys(
        ('longer_scored_higher', 'longer_chosen'),
        'both responses of each pair have the same length',
      ),
    }
  one_class = f'all {scores.size} labels are {columns["labels"][0]:g}'
  return reasons | dict.fromkeys(('roc_auc', 'balanced_accuracy'), one_class)
