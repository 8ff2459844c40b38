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
from tf_twostage.evaluation.estimators import (
  ESTIMATORS,
  IPS,
  Estimators,
  Terms,
  by_name,
  summarise_terms,
)
from tf_twostage.evaluation.intervals import (
  RatioSummary,
  lower_bound,
  standard_error,
  t_interval,
  unit_sums,
)
from tf_twostage.evaluation.overlap import (
  MODEL_ALONE,
  NO_WEIGHTS,
  support_warnings,
  weight_overlap,
)
from tf_twostage.evaluation.rows import PolicyRows, check_vector
from tf_twostage.evaluation.slate_estimators import SLATE_ESTIMATORS, supported
from tf_twostage.evaluation.slates import SlateRows


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
    lower_bound: the value is at least this, with the same confidence, for every number of units
      and however heavy the tail of the weights; see `intervals.lower_bound`. For IPS with rewards
      that are not negative; NaN for other estimators.
    gain: how much more than the logging policy the target policy earns, on the same rows.
    gain_error: its standard error.
    gain_interval: with Student's t.
    gain_lower_bound: of the gain, as `lower_bound`. No reward may exceed the largest logged one.
    confidence: of all intervals and bounds.
    num_rows: n.
    num_units: number of groups, or n.
    effective_sample_size: (Σω)² / Σω² of the weights in use, each summed over a unit: how many
      units of the logging policy would be as good; NaN without weights.
    effective_rewards: the same of ω |r|, how many units carry the rewards; NaN without weights.
    pareto_k: see `overlap.pareto_k`, of the same sums; NaN without weights.
    max_weight: the largest weight in use; NaN without weights.
    mean_weight: their mean, 1 up to noise; less by what a cap or a switch removed, and by mass of
      the target policy on actions that the logging policy never takes. NaN without weights.
    unlogged_mass: the target policy's mass on actions that the log never shows; NaN if unknown.
    unreliable: whether the log supports the estimate too little; `warnings` say why.
    warnings: reasons for doubt, each with a remedy.
    influence: see `intervals.RatioSummary`.
  """

  estimator: str
  value: float
  standard_error: float
  interval: tuple[float, float]
  bootstrap_interval: tuple[float, float]
  lower_bound: float
  gain: float
  gain_error: float
  gain_interval: tuple[float, float]
  gain_lower_bound: float
  confidence: float
  num_rows: int
  num_units: int
  effective_sample_size: float
  effective_rewards: float
  pareto_k: float
  max_weight: float
  mean_weight: float
  unlogged_mass: float
  unreliable: bool
  warnings: tuple[str, ...]
  influence: np.ndarray = dataclasses.field(repr=False, compare=False)


def evaluate(
  rows: PolicyRows | SlateRows,
  estimators: Estimators | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[Estimate]:
  """Estimates the target policy's value with every estimator.

  Args:
    rows: the logged rows or slates, with the target policy and the reward model.
    estimators: names in `ESTIMATORS`, for slates in `SLATE_ESTIMATORS`, or objects, or a mapping
      from names to objects. None: those for which the rows have what they need.
    confidence: of the intervals, in (0, 1).
    num_resamples: of the bootstrap; 0 leaves it out.
    seed: of the bootstrap. All estimators see the same resamples.

  Raises:
    InputError: the rows lack what an estimator needs, a name is unknown, there is no estimator, or
      an option is out of range.
  """
  if isinstance(rows, SlateRows):
    fitting = supported(
      exposures=rows.target_exposures is not None,
      cascade=rows.cascade_propensities is not None,
      model=rows.predicted_returns is not None,
    )
    named = by_name(fitting if estimators is None else estimators, SLATE_ESTIMATORS)
    terms = [estimator(rows) for estimator in named.values()]
  else:
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
    terms = [estimator(rows)._replace(whole_weights=rows.weights) for estimator in named.values()]
  ones = np.ones(len(rows))
  *summaries, mean_reward = summarise_terms(
    [*terms, Terms(rows.rewards, ones, None)],
    rows.units,
    confidence=confidence,
    num_resamples=num_resamples,
    seed=seed,
  )
  return [
    _estimate(name, term, summary, rows, mean_reward, confidence)
    for name, term, summary in zip(named, terms, summaries, strict=True)
  ]


def _estimate(
  name: str,
  term: Terms,
  summary: RatioSummary,
  rows: PolicyRows | SlateRows,
  mean_reward: RatioSummary,
  confidence: float,
) -> Estimate:
  """An estimate with its gain over the logging policy, diagnostics and warnings."""
  overlap = NO_WEIGHTS
  if term.weights is not None:
    overlap = weight_overlap(rows, term, summary)
  alone = (MODEL_ALONE,) if term.weights is None else ()
  doubts = overlap.warnings + support_warnings(rows, summary.num_units)
  gain, gain_error, gain_interval = difference(summary, mean_reward, confidence)
  bound, gain_bound = _lower_bounds(term, rows, confidence) if term.bounded else (np.nan, np.nan)
  return Estimate(
    name,
    **summary._asdict(),
    **overlap._replace(warnings=alone + doubts)._asdict(),
    lower_bound=bound,
    gain=gain,
    gain_error=gain_error,
    gain_interval=gain_interval,
    gain_lower_bound=gain_bound,
    confidence=confidence,
    num_rows=len(rows),
    unlogged_mass=rows.unlogged[1],
    unreliable=bool(doubts),
  )


def difference(
  first: Any, second: Any, confidence: float
) -> tuple[float, float, tuple[float, float]]:
  """first - second, paired: the value, its standard error and its interval with Student's t.

  Both have the value, influence and num_units of an `Estimate`, and are over the same rows, in the
  same order, with the same seed.
  """
  value = first.value - second.value
  error = standard_error(first.influence - second.influence, first.num_units)
  return value, error, t_interval(value, error, first.num_units, confidence)


def _lower_bounds(
  terms: Terms, rows: PolicyRows | SlateRows, confidence: float
) -> tuple[float, float]:
  """Of the value and of the gain: sums over units of at least 0, so that `lower_bound` holds."""
  largest = rows.rewards.max()
  columns = np.stack([terms.numerator, terms.numerator + (largest - rows.rewards)])
  values, gains = unit_sums(columns, rows.units)
  scale = len(values) / len(rows)
  return (
    scale * lower_bound(values, confidence),
    float(scale * lower_bound(gains, confidence) - largest),
  )


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
  frame = pd.DataFrame(map(vars, estimates)).set_index("estimator").drop(columns="influence")
  for name in ("interval", "bootstrap_interval", "gain_interval"):
    frame[f"{name}_low"], frame[f"{name}_high"] = zip(*frame.pop(name), strict=True)
  return frame
