"""Off-policy evaluation: what would a target policy π have earned on a log of another policy β?

    rows = PolicyRows.from_arrays(actions, rewards, propensities, probabilities, predicted_rewards)
    print(to_frame([on_policy(rewards), *evaluate(rows)]))

Works on arrays; nothing here depends on data sets, models or TensorFlow. `PolicyRows` holds and
checks a few numbers for each row, `estimators` turns them into ratios of sums, `intervals` adds
errors and confidence intervals, `overlap` adds warnings. `cross_fitting` predicts the rewards of DM
and DR by models that have not seen the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError
from tf_twostage.evaluation.estimators import ESTIMATORS, IPS, Estimators, by_name
from tf_twostage.evaluation.intervals import summarise_ratios
from tf_twostage.evaluation.overlap import MODEL_ALONE, support_warnings, weight_warnings
from tf_twostage.evaluation.rows import PolicyRows, check_vector
from tf_twostage.metrics import effective_sample_size


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One estimate of a policy's value, the expected reward of one action.

  Attributes:
    estimator: its name.
    value: the estimate.
    standard_error: over independent units (`num_units`). The policy and the reward model are taken
      as fixed, so noise from fitting them is not included.
    interval: with Student's t.
    bootstrap_interval: bias-corrected and accelerated; NaN without resamples.
    confidence: of both intervals.
    num_rows: n.
    num_units: number of groups, or n.
    effective_sample_size: (Σω)² / Σω² of the weights in use; NaN without weights.
    max_weight: the largest weight in use; NaN without weights.
    mean_weight: their mean, 1 up to noise; less by what a cap or a switch removed, and by mass of
      the target policy on actions that the logging policy never takes. NaN without weights.
    unlogged_mass: the target policy's mass on actions that the log never shows; NaN if unknown.
    unreliable: whether the log supports the estimate too little; `warnings` say why.
    warnings: reasons for doubt, each with a remedy.
  """

  estimator: str
  value: float
  standard_error: float
  interval: tuple[float, float]
  bootstrap_interval: tuple[float, float]
  confidence: float
  num_rows: int
  num_units: int
  effective_sample_size: float
  max_weight: float
  mean_weight: float
  unlogged_mass: float
  unreliable: bool
  warnings: tuple[str, ...]


def evaluate(
  rows: PolicyRows,
  estimators: Estimators | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[Estimate]:
  """Estimates the target policy's value with every estimator.

  Args:
    rows: the logged rows with the target policy and the reward model.
    estimators: names in `ESTIMATORS` or objects, or a mapping from names to objects. None: all of
      `ESTIMATORS`, without a reward model those that need none.
    confidence: of the intervals, in (0, 1).
    num_resamples: of the bootstrap; 0 leaves it out.
    seed: of the bootstrap. All estimators see the same resamples.

  Raises:
    InputError: an estimator needs the reward model that the rows lack, a name is unknown, there is
      no estimator, or an option is out of range.
  """
  has_model = rows.direct_values is not None
  if estimators is None:
    estimators = [name for name, e in ESTIMATORS.items() if has_model or not e.needs_model]
  named = by_name(estimators)
  lacking = [name for name, e in named.items() if e.needs_model and not has_model]
  if lacking:
    raise InputError(
      f"{', '.join(lacking)}: needs predicted_rewards, and the rows have none; fit a reward model"
      " (see cross_fitting.cross_fit)"
    )
  terms = [estimator(rows) for estimator in named.values()]
  ones = np.ones(len(rows))
  *summaries, mean_weight = summarise_ratios(
    np.stack([*(term.numerator for term in terms), rows.weights]),
    np.stack([*(term.denominator for term in terms), ones]),
    groups=None if rows.groups is None else pd.factorize(rows.groups)[0],
    confidence=confidence,
    num_resamples=num_resamples,
    seed=seed,
  )
  support = support_warnings(rows, mean_weight.num_units)
  estimates = []
  for name, term, summary in zip(named, terms, summaries, strict=True):
    weights = term.weights
    doubts = support if weights is None else weight_warnings(rows, weights, mean_weight) + support
    estimates.append(
      Estimate(
        name,
        **summary._asdict(),
        confidence=confidence,
        num_rows=len(rows),
        effective_sample_size=np.nan if weights is None else effective_sample_size(weights),
        max_weight=np.nan if weights is None else float(weights.max()),
        mean_weight=np.nan if weights is None else float(weights.mean()),
        unlogged_mass=rows.unlogged[1],
        unreliable=bool(doubts),
        warnings=(MODEL_ALONE, *doubts) if weights is None else doubts,
      )
    )
  return estimates


def on_policy(rewards: Any, groups: Any = None, **options: Any) -> Estimate:
  """The logging policy's own value, the mean reward, to compare the others with.

  Args:
    rewards: [n] finite.
    groups: [n] ids whose rows depend on each other; None: all rows are independent.
    **options: confidence, num_resamples and seed, as for `evaluate`.

  Raises:
    InputError: rewards are empty or not finite, or an option is out of range.
  """
  ones = np.ones(len(check_vector("rewards", rewards)))
  rows = PolicyRows(rewards, ones, ones, groups=groups)
  (estimate,) = evaluate(rows, {"on_policy": IPS()}, **options)
  return estimate


def to_frame(estimates: Iterable[Estimate]) -> pd.DataFrame:
  """A row for each estimate; intervals as columns _low and _high, warnings as a tuple."""
  frame = pd.DataFrame(map(vars, estimates)).set_index("estimator")
  for name in ("interval", "bootstrap_interval"):
    frame[f"{name}_low"], frame[f"{name}_high"] = zip(*frame.pop(name), strict=True)
  return frame
