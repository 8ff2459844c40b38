"""The estimators of a policy's value: each turns rows into a ratio of sums.

π is the target policy, β the logging policy, ω = π/β the importance weight of a row, rhat a reward
model. `off_policy.evaluate` adds errors, intervals and warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
  """From rows to terms; add your own by writing these two members."""

  needs_model: bool

  def __call__(self, rows: PolicyRows) -> Terms: ...


@dataclasses.dataclass(frozen=True)
class DM:
  """Direct method: mean of Σ_a π(a) rhat(a). The log only lends its contexts.

  As biased as the reward model; its standard error takes the model for the truth and does not
  show that.

  References:
    [Dudik14] Dudik, Erhan, Langford, Li, Doubly Robust Policy Evaluation and Optimization,
      Statistical Science 29, 2014, section 3.
  """

  needs_model = True

  def __call__(self, rows: PolicyRows) -> Terms:
    return Terms(_given(rows.direct_values), np.ones(len(rows)), None)


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

  Never leaves the range of the rewards, and moves with them: rewards + c give the value + c.
  Biased by O(1/n). NaN where no logged action has a chance under π.

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
  consistent if the model is. A row whose weight exceeds the threshold is left to the reward model:
  0 makes it DM, inf DR.

  Args:
    threshold: the largest weight trusted, >= 0.

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
    correction = weights * (rows.rewards - _given(rows.predicted_rewards))
    return Terms(_given(rows.direct_values) + correction, np.ones(len(rows)), weights)


# 10 is the weight cap of [Ma20], which trains with the same weights.
ESTIMATORS: Mapping[str, Estimator] = {
  "dm": DM(),
  "ips": IPS(),
  "clipped_ips": IPS(cap=10.0),
  "snips": SNIPS(),
  "dr": DR(),
  "switch_dr": DR(threshold=10.0),
}


def _given(column: np.ndarray | None) -> np.ndarray:
  if column is None:
    raise InputError("predicted_rewards: the rows have none, and this estimator needs them")
  return column
