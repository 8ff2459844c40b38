"""Whether a log supports an estimate: checks of importance weights, and warnings with remedies."""

from __future__ import annotations

import numpy as np

from tf_twostage.evaluation.intervals import RatioSummary
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.metrics import effective_sample_size

# Beyond any of these an estimate has a warning. They are rules of thumb, set where normal and
# bootstrap intervals begin to cover the truth visibly less often than they claim.
MIN_EFFECTIVE_ROWS = 100
MIN_EFFECTIVE_SHARE = 0.01  # of all rows
MAX_WEIGHT_SHARE = 0.1  # of one row in the sum of weights
MAX_UNLOGGED_MASS = 0.01  # of the target policy, on actions the log never shows
MIN_REWARDED_ROWS = 10  # with a weight and a reward: the "n p >= 10" of normal approximations
MIN_UNITS = 30  # groups, or rows
# E[ω] = 1. A larger deviation means wrong propensities, or mass of the target policy where the
# logging policy has none; one per cent is always allowed.
MEAN_WEIGHT_ERRORS = 3.0
MEAN_WEIGHT_TOLERANCE = 0.01

MODEL_ALONE = (
  "the value is the reward model's prediction, and the intervals leave out the model's own error;"
  " compare with dr"
)
_MORE = "log more, or evaluate a policy nearer to the logging policy"


def weight_warnings(
  rows: PolicyRows, weights: np.ndarray, mean_ratio: RatioSummary
) -> tuple[str, ...]:
  """Problems with the weights in use, [n], each with a remedy.

  `mean_ratio` is the mean of the weights ω before clipping or switching; its expectation is 1.
  """
  n, total = len(weights), weights.sum()
  if total == 0:
    return (
      "no row has a weight: the log has no evidence about this policy, and the value is the reward"
      f" model's or void; {_MORE}",
    )
  warnings = []
  size = effective_sample_size(weights)
  if size < max(MIN_EFFECTIVE_ROWS, MIN_EFFECTIVE_SHARE * n):
    warnings.append(
      f"the effective sample size is {size:.1f} of {n} rows: the intervals may be far too narrow;"
      f" {_MORE}"
    )
  largest = int(weights.argmax())
  if weights[largest] > MAX_WEIGHT_SHARE * total:
    warnings.append(
      f"row {largest} alone holds {weights[largest] / total:.0%} of all weight (ω ="
      f" {weights[largest]:.4g}): look at its propensity, cap the weights, or {_MORE}"
    )
  used = int(np.count_nonzero(weights * rows.rewards))
  if used < MIN_REWARDED_ROWS:
    warnings.append(
      f"only {used} rows have both a weight and a reward: the intervals cannot be trusted; {_MORE}"
    )
  mean, error = mean_ratio.value, mean_ratio.standard_error
  if abs(mean - 1) > max(MEAN_WEIGHT_ERRORS * error, MEAN_WEIGHT_TOLERANCE):
    warnings.append(
      f"the mean weight is {mean:.4g} ± {error:.2g}, and must be near 1: either the propensities"
      " are not those that drew the actions, or the target policy wants actions that the logging"
      " policy never takes; check the propensities, or evaluate a policy within their support"
    )
  return tuple(warnings)


def support_warnings(rows: PolicyRows, num_units: int) -> tuple[str, ...]:
  """Problems of the log for any estimator: too few units, actions never logged."""
  warnings = []
  if num_units < MIN_UNITS:
    units = "rows" if rows.groups is None else "groups"
    warnings.append(
      f"{num_units} independent {units} are too few for standard errors and intervals; log more"
    )
  count, mass = rows.unlogged
  if mass > MAX_UNLOGGED_MASS:  # False for NaN, unknown
    warnings.append(
      f"the target policy puts {mass:.1%} of its probability on {count} actions that the log never"
      " shows: only a reward model covers them; let the logging policy explore them, or remove them"
      " from the target policy"
    )
  return tuple(warnings)
