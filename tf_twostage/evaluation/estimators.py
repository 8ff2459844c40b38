"""The estimators of a policy's value: each turns rows into a ratio of sums.

π is the target policy, β the logging policy, ω = π/β the importance weight of a row, rhat a reward
model. `ESTIMATORS` names them; any object with the two members of `Estimator` serves as well.
`off_policy.evaluate` adds errors, intervals and warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from tf_twostage.errors import InputError
from tf_twostage.evaluation.rows import PolicyRows


class Terms(NamedTuple):
  """An estimate as Σ numerator / Σ denominator over rows.

  Attributes:
    numerator, denominator: [n].
    weights: [n], the importance weights in use; None where rewards are not weighted.
  """

  numerator: np.ndarray
  denominator: np.ndarray
  weights: np.ndarray | None


class Estimator(Protocol):
  """Maps rows to terms.

  Attributes:
    needs_model: whether it reads the reward model's columns.
  """

  needs_model: bool

  def __call__(self, rows: PolicyRows) -> Terms: ...


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
    return Terms(_required(rows.direct_values), np.ones(len(rows)), None)


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
    return Terms(weights * rows.rewards, np.ones(len(rows)), weights)


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
    correction = weights * (rows.rewards - _required(rows.predicted_rewards))
    return Terms(_required(rows.direct_values) + correction, np.ones(len(rows)), weights)


@dataclasses.dataclass(frozen=True)
class Gain:
  """What the target policy earns more than the logging policy: mean of (min(ω, cap) - 1) r.

  Not a value, so not in `ESTIMATORS`. Its lower confidence bound chooses the best epoch, because it
  errs on the safe side:

  * The best of many noisy estimates is most often the noisiest; the bound subtracts errors.
  * Where the policy wants items that were not logged, weights are missing or huge. Rewards are not
    negative, so a missing or clipped weight can only lower the mean. SNIPS ignores missing weights
    and has no error at all where one row holds all the weight; DR falls back on the reward model.
  * The difference is over the same rows. A policy that no rewarded row supports has a negative
    gain, and the logging policy gains exactly 0. The bound of a plain mean would prefer the first,
    at 0 ± 0, to any policy whose rewards are rare and so uncertain.

  References:
    Thomas, Theocharous, Ghavamzadeh, High Confidence Policy Improvement, ICML 2015; [SJ15] for
      subtracting the error while learning.
  """

  cap: float = 10.0  # as in training
  needs_model = False

  def __call__(self, rows: PolicyRows) -> Terms:
    weights = np.minimum(rows.weights, self.cap)
    return Terms((weights - 1) * rows.rewards, np.ones(len(rows)), weights)


# 10 is the weight cap of [Ma20], which trains with the same weights.
ESTIMATORS: Mapping[str, Estimator] = {
  "dm": DM(),
  "ips": IPS(),
  "clipped_ips": IPS(cap=10.0),
  "snips": SNIPS(),
  "dr": DR(),
  "switch_dr": DR(threshold=10.0),
}
Estimators = Mapping[str, Estimator] | Iterable[str | Estimator]


def by_name(estimators: Estimators) -> dict[str, Estimator]:
  """Looks up names in `ESTIMATORS`, and names objects after their type and settings.

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
      elif estimator in ESTIMATORS:
        found[estimator] = ESTIMATORS[estimator]
      else:
        raise InputError(f"no estimator {estimator!r}: choose from {', '.join(ESTIMATORS)}")
  if not found:
    raise InputError("no estimator given: choose from " + ", ".join(ESTIMATORS))
  return found


def _required(column: np.ndarray | None) -> np.ndarray:
  if column is None:
    raise InputError("predicted_rewards: the rows have none, and this estimator needs them")
  return column
