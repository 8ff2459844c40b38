"""Whether a log supports an estimate: checks of importance weights, and warnings with remedies.

What counts is the unit that intervals treat as one draw: a group, such as a user, or a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tf_twostage.evaluation.estimators import Terms
from tf_twostage.evaluation.intervals import RatioSummary, standard_error, unit_sums
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.slates import SlateRows
from tf_twostage.metrics import effective_sample_size

# Beyond any of these an estimate has a warning. They were chosen on other simulated logs than those
# of `benchmarks.coverage`, which measures how often intervals without a warning cover the truth.
MIN_EFFECTIVE_UNITS = 30
MIN_EFFECTIVE_SHARE = 0.01  # of all units
MIN_EFFECTIVE_REWARDS = 25  # units, weighted by what they earned
MAX_WEIGHT_SHARE = 0.1  # of one unit in the sum of weights
MAX_PARETO_K = 0.5  # at which a generalised Pareto distribution loses its variance
# Of the mean, were weights lognormal. A sample without the largest weights looks harmless and has
# too low a value, but the variance of its logarithms hardly depends on them. Cochran's rule for
# the normal distribution, n >= 25 skewness², is a limit of 0.2; weights are bounded, and have less
# skewness than lognormal ones.
MAX_SKEWNESS = 0.4
MAX_UNLOGGED_MASS = 0.01  # of the target policy, on actions the log never shows
MIN_UNITS = 30  # groups, or rows
# What a cap or a switch removes is left out of standard errors. Assuming that it earns as much as
# the rest, it may be this part of them.
MAX_REMOVED_ERRORS = 0.25
# E[ω] = 1. A larger deviation means wrong propensities, or mass of the target policy where the
# logging policy has none; one per cent is always allowed.
MEAN_WEIGHT_ERRORS = 3.0
MEAN_WEIGHT_TOLERANCE = 0.01

MODEL_ALONE = (
  "the value is the reward model's prediction, and the intervals leave out the model's own error;"
  " compare with dr"
)
_MORE = "log more, or evaluate a policy nearer to the logging policy"
_MIN_TAIL = 5  # largest weights, to fit a tail to


def pareto_k(weights: np.ndarray) -> float:
  """The shape k of a generalised Pareto distribution of the largest weights; NaN without a tail.

  Moments of an order above 1 / k are infinite: at k >= 0.5 the variance, so that standard errors
  mean nothing, at k >= 1 the mean.

  Args:
    weights: [G] >= 0.

  References:
    Vehtari, Simpson, Gelman, Yao, Gabry, Pareto Smoothed Importance Sampling, JMLR 25, 2024: the
      largest min(G / 5, 3 sqrt(G)), and the prior of appendix C;
    Zhang, Stephens, A New and Efficient Estimation Method for the Generalized Pareto Distribution,
      Technometrics 51, 2009.
  """
  n = len(weights)
  size = int(np.ceil(min(n / 5, 3 * np.sqrt(n))))
  if size >= n:
    return np.nan
  tail = np.sort(np.partition(weights, n - size - 1)[n - size - 1 :])
  tail = tail[1:] - tail[0]
  tail = tail[tail > 0]  # weights equal to the threshold are not above it
  if len(tail) < _MIN_TAIL:
    return np.nan
  tail /= tail[-1]
  num_tail, num_scales = len(tail), 30 + int(np.sqrt(len(tail)))
  quartile = tail[int(num_tail / 4 + 0.5) - 1]
  scales = 1 - np.sqrt(num_scales / (np.arange(num_scales) + 0.5))
  scales = 1 / tail[-1] + scales / (3 * quartile)
  scales = scales[scales != 0]
  shapes = np.log1p(-scales[:, np.newaxis] * tail).mean(axis=1)
  likelihood = num_tail * (np.log(-scales / shapes) - shapes - 1)
  posterior = np.exp(likelihood - likelihood.max())
  scale = (posterior * scales).sum() / posterior.sum()
  shape = np.log1p(-scale * tail).mean()
  return float((num_tail * shape + 10 * 0.5) / (num_tail + 10))


def _log_variance(weights: np.ndarray) -> float:
  """The variance of log ω under the distribution tilted by sqrt(ω), in which tiny ω do not count.

  For lognormal weights it is that of log ω.
  """
  logs = np.log(weights[weights > 0])
  shares = np.exp(0.5 * (logs - logs.max()))
  return float(np.cov(logs, aweights=shares, ddof=0))


def _skewness(weights: np.ndarray) -> float:
  """The skewness of the mean of lognormal weights that vary as these do, [G]."""
  spread = np.exp(min(_log_variance(weights), 100.0))
  return float((spread + 2) * np.sqrt((spread - 1) / len(weights)))


class Overlap(NamedTuple):
  """Diagnostics of the weights in use; see `off_policy.Estimate`."""

  effective_sample_size: float
  effective_rewards: float
  pareto_k: float
  max_weight: float
  mean_weight: float
  warnings: tuple[str, ...]


NO_WEIGHTS = Overlap(np.nan, np.nan, np.nan, np.nan, np.nan, ())


def weight_overlap(rows: PolicyRows | SlateRows, terms: Terms, summary: RatioSummary) -> Overlap:
  """Diagnostics and problems, each with a remedy, of an estimate with weights."""
  assert terms.weights is not None
  by_row = terms.weights * np.abs(rows.rewards) if terms.earned is None else terms.earned
  whole = terms.weights if terms.whole_weights is None else terms.whole_weights
  mean = whole.mean()  # 1 in expectation
  weights, earned, excess = unit_sums(np.stack([terms.weights, by_row, whole - mean]), rows.units)
  found = Overlap(
    effective_sample_size(weights),
    effective_sample_size(earned),
    pareto_k(weights),
    float(terms.weights.max()),
    float(terms.weights.mean()),
    (),
  )
  n, total = len(weights), weights.sum()
  unit = _unit(rows)
  if total == 0:
    nothing = (
      "no row has a weight: the log has no evidence about this policy, and the value is the reward"
      f" model's or void; {_MORE}"
    )
    return found._replace(warnings=(nothing,))
  warnings = []
  size = found.effective_sample_size
  # `support_warnings` says so where there are few units at all.
  if n >= MIN_UNITS and size < max(MIN_EFFECTIVE_UNITS, MIN_EFFECTIVE_SHARE * n):
    warnings.append(
      f"the effective sample size is {size:.1f} of {n} {unit}s: the intervals may be far too"
      f" narrow; {_MORE}"
    )
  largest = int(weights.argmax())
  if weights[largest] > MAX_WEIGHT_SHARE * total:
    named: Any = largest
    if rows.groups is not None:
      named = rows.groups[np.argmax(rows.units == largest)]
      named = named if rows.group_names is None else repr(rows.group_names[named])
    warnings.append(
      f"{unit} {named} alone holds {weights[largest] / total:.0%} of all weight (ω ="
      f" {weights[largest]:.4g}): look at its propensities, cap the weights, or {_MORE}"
    )
  if found.pareto_k > MAX_PARETO_K or _skewness(weights) > MAX_SKEWNESS:  # False for NaN
    spread = np.sqrt(_log_variance(weights))
    warnings.append(
      f"the weights have a heavy tail (Pareto k = {found.pareto_k:.2f}, standard deviation of"
      f" logarithms {spread:.2g}): larger ones than in the log are to be expected. The value is"
      " most likely too low and the intervals too narrow; decide by the lower bound, cap the"
      f" weights, or {_MORE}"
    )
  if found.effective_rewards < MIN_EFFECTIVE_REWARDS:
    warnings.append(
      f"the rewards are those of {found.effective_rewards:.1f} effective {unit}s of {n}: the"
      f" intervals cannot be trusted; {_MORE}"
    )
  removed = 1 - terms.weights.sum() / whole.sum()  # exactly 0 without a cap
  if removed * abs(summary.value) > MAX_REMOVED_ERRORS * summary.standard_error:
    warnings.append(
      f"the cap removes {removed:.1%} of the weight, a bias that is not small against the standard"
      " error; raise the cap, or compare with snips and dr"
    )
  error = standard_error(excess / len(rows))
  if abs(mean - 1) > max(MEAN_WEIGHT_ERRORS * error, MEAN_WEIGHT_TOLERANCE):
    warnings.append(
      f"the mean weight is {mean:.4g} ± {error:.2g}, and must be near 1: either the propensities"
      " are not those that drew the actions, or the target policy wants actions that the logging"
      " policy never takes; check the propensities, or evaluate a policy within their support"
    )
  return found._replace(warnings=tuple(warnings))


def _unit(rows: PolicyRows | SlateRows) -> str:
  """What intervals treat as one draw."""
  if rows.groups is None:
    return rows.noun
  return "group" if rows.group_names is None else "user"


def support_warnings(rows: PolicyRows | SlateRows, num_units: int) -> tuple[str, ...]:
  """Problems of the log for any estimator: too few units, actions never logged."""
  warnings = []
  if num_units < MIN_UNITS:
    warnings.append(
      f"{num_units} independent {_unit(rows)}s are too few for standard errors and intervals;"
      " log more"
    )
  count, mass = rows.unlogged
  if mass > MAX_UNLOGGED_MASS:  # False for NaN, unknown
    warnings.append(
      f"the target policy puts {mass:.1%} of its probability on {count} actions that the log never"
      " shows: only a reward model covers them; let the logging policy explore them, or remove them"
      " from the target policy"
    )
  return tuple(warnings)
