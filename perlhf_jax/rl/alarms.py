"""Warnings when a run goes wrong in a known way, with the likely causes."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

from absl import logging

from perlhf_jax.core import checks
from perlhf_jax.core import errors

# A KL below -(_NOISE standard errors + _ROUNDING nats) raises an alarm.
_NOISE = 3.0
_ROUNDING = 1e-3


@dataclasses.dataclass
class Alarms:
  """Checks the metrics of a run once per log period.

  An alarm logs a warning, and then stays quiet for some checks. Alarms do not
  change the run, except that too many skipped updates in a row end it.

  Attributes:
    ratio_tolerance: how much the ratio may differ from 1 in the first minibatch
      of a rollout; bfloat16 needs about 0.05.
    least_entropy: a policy below this entropy, in nats per token, counts as
      collapsed.
    most_truncated: share of responses cut off at the length limit at which the
      policy counts as unable to stop.
    max_skipped_in_a_row: consecutive skipped updates after which the run stops.
    repeat_after: checks between two warnings of the same kind.
  """

  ratio_tolerance: Annotated[float, checks.NotNegative] = 1e-3
  least_entropy: Annotated[float, checks.NotNegative] = 0.01
  most_truncated: Annotated[float, checks.Fraction] = 0.99
  max_skipped_in_a_row: Annotated[int, checks.AtLeastOne] = 10
  repeat_after: Annotated[int, checks.AtLeastOne] = 10

  _checks: int = dataclasses.field(default=0, init=False, repr=False)
  _skipped: float = dataclasses.field(default=0, init=False, repr=False)
  _warned: dict[str, int] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  def __post_init__(self):
    checks.check_fields(self)

  def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
    """Logs a warning for each problem that the metrics show.

    Args:
      step: the step, for the messages.
      metrics: `kl_k1`, nats per response, and `kl_k1_standard_error`;
        `ratio_deviation`, mean |ratio - 1| in the first minibatch; `entropy`,
        nats per token; `truncated`, share of responses without EOS; `skipped`,
        updates skipped since the run began, and `skipped_in_a_row`; where
        scores are normalised, `outliers`, scores of this step that were cut.
        A metric that is NaN raises no alarm.

    Returns:
      The names of the alarms that went off, including the quiet ones.

    Raises:
      UserError: too many updates were skipped in a row.
    """
    self._checks += 1
    if metrics['skipped_in_a_row'] >= self.max_skipped_in_a_row:
      raise errors.UserError(
        f'Step {step}: {metrics["skipped_in_a_row"]:.0f} updates in a row were '
        'skipped, because the loss or a gradient was NaN or infinite. The run '
        'stops; the last good checkpoint is kept. Likely causes: a score that '
        'is NaN, a learning rate that is too high, or bfloat16 where float32 '
        'is needed. Go on from the checkpoint with a lower LEARNING_RATE and '
        '--gin.ACCEPT_CHANGES=True, or raise Alarms.max_skipped_in_a_row.'
      )
    found = self._find(metrics)
    self._skipped = metrics['skipped']
    for name, message in found.items():
      since = self._checks - self._warned.get(name, -self.repeat_after)
      if since >= self.repeat_after:
        self._warned[name] = self._checks
        logging.warning('Step %d: %s', step, message)
    return list(found)

  def _find(self, metrics: Mapping[str, float]) -> dict[str, str]:
    """Returns the message of each alarm that goes off."""
    found = {}
    # k1, whatever the algorithm trains on: k3 is never negative.
    kl, error = metrics['kl_k1'], metrics['kl_k1_standard_error']
    if kl < -_NOISE * error - _ROUNDING:
      found['negative_kl'] = (
        f'The KL (k1) to the reference is {kl:.4g} nats per response, with a '
        f'standard error of {error:.2g}. A KL is never negative, so the '
        'responses are not samples of the log-probabilities used. Likely '
        'causes: top-k or top-p warped the rollout; the rollout and the '
        'policy pass differ in temperature; dropout is on in a pass; an '
        'adapter is left on the reference; padding on the wrong side, or EOS '
        'masked in one pass only.'
      )
    deviation = metrics['ratio_deviation']
    if deviation > self.ratio_tolerance:
      found['ratio'] = (
        'In the first minibatch of a rollout the ratio of policy to rollout '
        f'differs from 1 by {deviation:.3g} on average, more than '
        f'{self.ratio_tolerance:g}, though both are the same weights. Likely '
        'causes: dropout is on in a pass; temperature, top-k or top-p apply '
        'to one pass only; responses are shifted or padded differently; the '
        'rollout was made with older weights; or bfloat16, for which '
        'IMPORTANCE_CAP corrects, or Alarms.ratio_tolerance may be raised.'
      )
    entropy = metrics['entropy']
    if entropy < self.least_entropy:
      found['entropy'] = (
        f'The entropy of the policy has fallen to {entropy:.3g} nats per '
        'token: it answers almost without choice and hardly learns any more. '
        'Likely causes: a learning rate that is too high; KL_BETA too small; '
        'one answer that fools the reward, which samples.jsonl would show.'
      )
    truncated = metrics['truncated']
    if truncated >= self.most_truncated:
      found['truncated'] = (
        f'{100 * truncated:.0f}% of the responses are cut off at the length '
        'limit. Likely causes: a response length that is too short for the '
        'task; supervised tuning on targets without EOS; a temperature that '
        'is too high; a reward that grows with length, against which '
        'RewardShaping.missing_eos_penalty and length_penalty help.'
      )
    skipped = metrics['skipped']
    if skipped > self._skipped:
      found['skipped'] = (
        f'{skipped:.0f} updates of this run were skipped, because the loss or '
        'a gradient was NaN or infinite. Likely causes: a score that is NaN, '
        'a learning rate that is too high, or bfloat16 where float32 is '
        'needed.'
      )
    outliers = metrics.get('outliers', 0)
    if outliers > 0:
      found['outliers'] = (
        f'{outliers:.0f} of the scores of this step had to be cut before they '
        'were normalised, because they are more than 30 spreads from the '
        'median of the others: uncut, they would make all later scores 0. '
        'Likely causes: a reward function that divides by almost 0 or returns '
        'a sum for a mean; a reward model that was damaged. '
        'RewardShaping.normalize does this.'
      )
    return found
