"""The estimators of a policy's value: each turns rows into a mean plus a ratio of sums.

π is the target policy, β the logging policy, ω = π/β the importance weight of a row, rhat a reward
model. `ESTIMATORS` names them; any object with the two members of `Estimator` serves as well.
`off_policy.evaluate` adds errors, intervals and warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_twostage.errors import InputError
from tf_twostage.evaluation.intervals import RatioSummary, summarise_ratios
from tf_twostage.evaluation.rows import PolicyRows


class Terms(NamedTuple):
  """An estimate as the mean of offsets plus Σ numerator / Σ denominator, over rows.

  Attributes:
    numerator, denominator: [n]; or [R, n], for the sum of R ratios.
    weights: [n], the importance weights in use; None where rewards are not weighted.
    offset: [n]; None: zero.
    bounded: whether numerators are at least 0 and the estimate is their mean, which is the value
      in expectation, or less. `intervals.lower_bound` needs this.
    whole_weights: [n], the weights before a cap or a switch; None: the `weights` of the rows.
    earned: [n], what the weights say each row earned; None: weights |rewards|.
  """

  numerator: np.ndarray
  denominator: np.ndarray
  weights: np.ndarray | None
  offset: np.ndarray | None = None
  bounded: bool = False
  whole_weights: np.ndarray | None = None
  earned: np.ndarray | None = None


class Estimator(Protocol):
  """Maps rows to terms."""

  @property
  def needs_model(self) -> bool:
    """Whether it reads the reward model's columns."""

  def __call__(self, rows: Any) -> Terms: ...


@dataclasses.dataclass(frozen=True)
class DM:
  """Direct method: mean of Σ_a π(a) rhat(a). Of the log it reads the contexts alone.

  As biased as the reward model. Its standard error treats the model as the truth and leaves the
  bias out.

  References:
    [Dudik14] Dudik, Erhan, Langford, Li, Doubly Robust Policy Evaluation and Optimization,
      Statistical Science 29, 2014, section 3.
  """

  needs_model = True

  def __call__(self, rows: PolicyRows) -> Terms:
    zeros = np.zeros(len(rows))
    return Terms(zeros, zeros + 1, None, _required(rows.direct_values))


@dataclasses.dataclass(frozen=True)
class IPS:
  """Inverse propensity scoring: mean of min(ω, cap) r, ω = π/β.

  Unbiased without a cap, if β > 0 wherever π > 0. A cap trades variance for bias, towards zero
  where rewards are not negative.

  Args:
    cap: the largest weight, > 0.

  Raises:
    InputError: cap is not positive.

  References:
    Horvitz, Thompson, JASA 47, 1952; Ionides, Truncated Importance Sampling, JCGS 17, 2008.
  """

  cap: float = np.inf
  needs_model = False

  def __post_init__(self):
    if not self.cap > 0:
      raise InputError(f"cap must be above 0, got {self.cap}; inf does not clip")

  def __call__(self, rows: PolicyRows) -> Terms:
    weights = np.minimum(rows.weights, self.cap)
    bounded = bool(rows.rewards.min() >= 0)
    return Terms(weights * rows.rewards, np.ones(len(rows)), weights, bounded=bounded)


@dataclasses.dataclass(frozen=True)
class SNIPS:
  """Self-normalised IPS: Σ ω r / Σ ω.

  It stays within the range of the rewards, and rewards + c give the value + c. Biased by O(1/n).
  NaN where π never takes a logged action.

  References:
    [SJ15b] Swaminathan, Joachims, The Self-Normalized Estimator for Counterfactual Learning,
      NeurIPS 2015, equation 8.
  """

  needs_model = False

  def __call__(self, rows: PolicyRows) -> Terms:
    return Terms(rows.weights * rows.rewards, rows.weights, rows.weights)


@dataclasses.dataclass(frozen=True)
class DR:
  """Doubly robust, with a switch: mean of Σ_a π(a) rhat(a) + ω 1[ω <= threshold] (r - rhat(a_i)).

  Without a threshold it is unbiased if the propensities are right, whatever the reward model, and
  consistent if the model is right. Rows with a weight above the threshold use the reward model
  alone: 0 gives DM, inf DR.

  Args:
    threshold: the largest weight in use, >= 0.

  Raises:
    InputError: threshold is negative.

  References:
    [Dudik14], equation 5; Wang, Agarwal, Dudik, Optimal and Adaptive Off-policy Evaluation in
      Contextual Bandits, ICML 2017, section 4: SWITCH with DR below the threshold.
  """

  threshold: float = np.inf
  needs_model = True

  def __post_init__(self):
    if not self.threshold >= 0:
      raise InputError(f"threshold must be at least 0, got {self.threshold}; inf never switches")

  def __call__(self, rows: PolicyRows) -> Terms:
    weights = np.where(rows.weights <= self.threshold, rows.weights, 0.0)
    return _corrected(rows, weights, np.ones(len(rows)))


@dataclasses.dataclass(frozen=True)
class DRos:
  """Doubly robust with optimistic shrinkage: DR with the weights λ ω / (ω² + λ).

  They are at most sqrt(λ) / 2, reached at ω = sqrt(λ). λ = 0 gives DM, inf DR.

  Args:
    shrinkage: λ, >= 0.

  Raises:
    InputError: shrinkage is negative.

  References:
    Su, Dimakopoulou, Krishnamurthy, Dudik, Doubly Robust Off-policy Evaluation with Shrinkage,
      ICML 2020, section 3.
  """

  shrinkage: float = np.inf
  needs_model = True

  def __post_init__(self):
    if not self.shrinkage >= 0:
      raise InputError(f"shrinkage must be at least 0, got {self.shrinkage}; inf does not shrink")

  def __call__(self, rows: PolicyRows) -> Terms:
    weights = rows.weights
    if self.shrinkage == 0:
      weights = np.zeros(len(rows))
    elif self.shrinkage < np.inf:
      weights = weights / (weights * (weights / self.shrinkage) + 1)  # does not overflow
    return _corrected(rows, weights, np.ones(len(rows)))


@dataclasses.dataclass(frozen=True)
class SNDR:
  """Self-normalised doubly robust: mean of Σ_a π(a) rhat(a), plus Σ ω (r - rhat(a_i)) / Σ ω.

  A little biased, as SNIPS is; rewards + c and rhat + c give the value + c.

  References:
    Thomas, Brunskill, Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning,
      ICML 2016: the weighted doubly robust estimator, for one decision.
  """

  needs_model = True

  def __call__(self, rows: PolicyRows) -> Terms:
    return _corrected(rows, rows.weights, rows.weights)


@dataclasses.dataclass(frozen=True)
class Slope:
  """The candidate that SLOPE chooses: the one of least variance that no other contradicts.

  Candidates are ordered from the widest to the narrowest confidence interval, so that biases
  increase while variances decrease. The i-th is good if |v_i - v_j| <= c_i + (sqrt(6) - 1) c_j for
  all j before it, with c half the interval's width; the last before the first that is not good is
  chosen. Errors of the result leave out that the data chose it.

  Args:
    candidates: estimators that differ in their cap, threshold or shrinkage.

  Raises:
    InputError: there is no candidate.

  References:
    Su, Srinath, Krishnamurthy, Adaptive Estimator Selection for Off-Policy Evaluation, ICML 2020.
  """

  candidates: tuple[Estimator, ...]

  def __post_init__(self):
    if not self.candidates:
      raise InputError("Slope needs candidates: give it estimators that differ in one setting")

  @property
  def needs_model(self) -> bool:
    return any(candidate.needs_model for candidate in self.candidates)

  def __call__(self, rows: PolicyRows) -> Terms:
    terms = [candidate(rows) for candidate in self.candidates]
    summaries = summarise_terms(terms, rows.units, confidence=_SLOPE_CONFIDENCE, num_resamples=0)
    values = np.array([summary.value for summary in summaries])
    widths = np.array([summary.interval[1] - summary.value for summary in summaries])
    order = np.argsort(widths, kind="stable")[::-1]
    values, widths = values[order], widths[order]
    near = np.abs(values[:, np.newaxis] - values) <= widths[:, np.newaxis] + _SLOPE_FACTOR * widths
    good = (near | ~np.tri(len(order), k=-1, dtype=bool)).all(axis=1)
    return terms[order[np.argmin([*good, False]) - 1]]


_SLOPE_CONFIDENCE = 0.8  # of two-sided intervals, 90% on either side, as in Open Bandit Pipeline
_SLOPE_FACTOR = np.sqrt(6) - 1
_GRID = tuple(float(cap) for cap in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, np.inf))

# 10 is the weight cap of [Ma20], which trains with the same weights.
ESTIMATORS: Mapping[str, Estimator] = {
  "dm": DM(),
  "ips": IPS(),
  "clipped_ips": IPS(cap=10.0),
  "slope_ips": Slope(tuple(IPS(cap) for cap in _GRID)),
  "snips": SNIPS(),
  "dr": DR(),
  "sndr": SNDR(),
  "switch_dr": DR(threshold=10.0),
  "slope_switch_dr": Slope(tuple(DR(threshold) for threshold in _GRID)),
  "slope_dros": Slope(tuple(DRos(cap**2) for cap in _GRID)),
}
Estimators = Mapping[str, Estimator] | Iterable[str | Estimator]


def by_name(
  estimators: Estimators, known: Mapping[str, Estimator] = ESTIMATORS
) -> dict[str, Estimator]:
  """Looks up names in `known`, and names objects after their type and settings.

  Raises:
    InputError: a name is unknown, or there is no estimator.
  """
  if isinstance(estimators, str):
    estimators = [estimators]
  if isinstance(estimators, Mapping):
    found = dict(estimators)
  else:
    found = {}
    for estimator in estimators:
      if not isinstance(estimator, str):
        is_data = dataclasses.is_dataclass(estimator)
        found[repr(estimator) if is_data else type(estimator).__name__] = estimator
      elif estimator in known:
        found[estimator] = known[estimator]
      else:
        raise InputError(f"no estimator {estimator!r}: choose from {', '.join(known)}")
  if not found:
    raise InputError("no estimator given: choose from " + ", ".join(known))
  return found


def summarise_terms(
  terms: Sequence[Terms], units: np.ndarray | None, **options: Any
) -> list[RatioSummary]:
  """Values, errors and intervals of estimates over the same rows; see `summarise_ratios`.

  `units` [n] are the codes of independent units; None: each row is one.
  """
  numerators = [np.atleast_2d(term.numerator) for term in terms]
  offsets = [np.zeros(part.shape) for part in numerators]
  for offset, term in zip(offsets, terms, strict=True):
    offset[0] = 0 if term.offset is None else term.offset
  return summarise_ratios(
    np.concatenate(numerators),
    np.concatenate([np.atleast_2d(term.denominator) for term in terms]),
    np.concatenate(offsets),
    sizes=[len(part) for part in numerators],
    groups=units,
    **options,
  )


def _corrected(rows: PolicyRows, weights: np.ndarray, denominator: np.ndarray) -> Terms:
  """The reward model's values, corrected by weighted residuals."""
  residuals = rows.rewards - _required(rows.predicted_rewards)
  return Terms(weights * residuals, denominator, weights, _required(rows.direct_values))


def _required(column: np.ndarray | None) -> np.ndarray:
  if column is None:
    raise InputError("predicted_rewards: the rows have none, and this estimator needs them")
  return column
