"""Off-policy evaluation: what would a target policy π have earned on a log of another policy β?

    rows = PolicyRows.from_arrays(actions, rewards, propensities, probabilities, predicted_rewards)
    print(to_frame([on_policy(rewards), *evaluate(rows)]))

Arrays in, estimates out: nothing here knows data sets, models or TensorFlow. `PolicyRows` holds a
few numbers a row and checks them; `estimators` turns them into ratios of sums; `intervals` says
how far to trust those, `overlap` whether to. `cross_fitting` fits the reward model of DM and DR
without letting it see the rows it predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError
from tf_twostage.evaluation.estimators import DM, DR, ESTIMATORS, IPS, SNIPS, Estimator, Terms
from tf_twostage.evaluation.intervals import RatioSummary, summarise_ratios
from tf_twostage.evaluation.overlap import MODEL_ALONE, support_warnings, weight_warnings
from tf_twostage.evaluation.rows import PolicyRows, check_finite, check_groups, check_vector
from tf_twostage.metrics import effective_sample_size

__all__ = [
  "DM",
  "DR",
  "ESTIMATORS",
  "IPS",
  "SNIPS",
  "Estimate",
  "Estimator",
  "PolicyRows",
  "Terms",
  "evaluate",
  "on_policy",
  "to_frame",
]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What one estimator says of a policy's value, the expected reward of one action.

  Attributes:
    estimator: its name.
    value: the estimate.
    standard_error: over independent units (`num_units`); the policy and the reward model count
      as given, so noise from fitting them is not in it.
    interval: with Student's t.
    bootstrap_interval: bias-corrected and accelerated; NaN where no resamples were asked for.
    confidence: of both intervals.
    num_rows: n.
    num_units: groups, or n.
    effective_sample_size: (Σω)² / Σω² of the weights in use; NaN without weights.
    max_weight: the largest weight in use; NaN without weights.
    mean_weight: their mean: the share of the target policy's mass that the log answers for. 1 up
      to noise, less by what a cap or a switch took away; NaN without weights.
    unlogged_mass: the target policy's mass on actions that the log never shows; NaN if unknown.
    warnings: why not to believe it, each with a remedy.
  """

  estimator: str
  value: float
  standard_error: float
  interval: tuple[float, float]
  bootstrap_interval: tuple[float, float]
  confidence: float
  num_rows: int
  num_units: int
  effective_sample_size: float = np.nan
  max_weight: float = np.nan
  mean_weight: float = np.nan
  unlogged_mass: float = np.nan
  warnings: tuple[str, ...] = ()


def evaluate(
  rows: PolicyRows,
  estimators: Mapping[str, Estimator] | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[Estimate]:
  """Estimates the target policy's value, one estimate an estimator.

  Args:
    rows: the log as the target policy and the reward model see it.
    estimators: by name. Default: those of `ESTIMATORS` that the rows allow; without a reward
      model DM and DR are left out.
    confidence: of the intervals, in (0, 1).
    num_resamples: of the bootstrap; 0 leaves it out.
    seed: of the bootstrap. All estimators see the same resamples.

  Raises:
    InputError: an estimator needs the reward model that the rows lack, there is no estimator, or
      an option is out of range.
  """
  has_model = rows.direct_values is not None
  if estimators is None:
    estimators = {k: e for k, e in ESTIMATORS.items() if has_model or not e.needs_model}
  lacking = [name for name, e in estimators.items() if e.needs_model and not has_model]
  if lacking or not estimators:
    raise InputError(
      f"{', '.join(lacking)}: needs predicted_rewards, and the rows have none; fit a reward model"
      " (see cross_fitting.cross_fit)"
      if lacking
      else "no estimator given: choose from " + ", ".join(ESTIMATORS)
    )
  terms = [estimator(rows) for estimator in estimators.values()]
  # The mean of ω rides along, as one ratio more.
  *summaries, mean_ratio = _summarise(
    [*terms, Terms(rows.weights, np.ones(len(rows)), None)],
    rows.groups,
    confidence=confidence,
    num_resamples=num_resamples,
    seed=seed,
  )
  general = support_warnings(rows, mean_ratio.num_units)
  return [
    _estimate(name, rows, term, summary, mean_ratio, general, confidence)
    for name, term, summary in zip(estimators, terms, summaries, strict=True)
  ]


def on_policy(
  rewards: Any,
  groups: Any = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> Estimate:
  """The logging policy's own value: the mean reward, to hold the others against.

  Args:
    rewards: [n] finite.
    groups: [n] ids whose rows are not independent; None: each row stands for itself.
    confidence, num_resamples, seed: as for `evaluate`.

  Raises:
    InputError: rewards are empty or not finite, or an option is out of range.
  """
  rewards = check_vector("rewards", rewards)
  check_finite("rewards", rewards, "drop the rows whose outcome is unknown")
  groups = None if groups is None else check_groups(groups, len(rewards))
  ones = np.ones(len(rewards))
  rows = PolicyRows(rewards, ones, ones, groups=groups)
  (estimate,) = evaluate(
    rows,
    {"on_policy": IPS()},
    confidence=confidence,
    num_resamples=num_resamples,
    seed=seed,
  )
  return estimate


def to_frame(estimates: Iterable[Estimate]) -> pd.DataFrame:
  """One row an estimate, one column a number; intervals as low and high, warnings as one text."""
  records = []
  for estimate in estimates:
    record = dataclasses.asdict(estimate)
    for name in ("interval", "bootstrap_interval"):
      record[f"{name}_low"], record[f"{name}_high"] = record.pop(name)
    record["warnings"] = "; ".join(record.pop("warnings"))
    records.append(record)
  return pd.DataFrame(records).set_index("estimator")


def _summarise(terms: list[Terms], groups: np.ndarray | None, **options: Any) -> list[RatioSummary]:
  codes = None if groups is None else pd.factorize(groups)[0]
  return summarise_ratios(
    np.stack([term.numerator for term in terms]),
    np.stack([term.denominator for term in terms]),
    groups=codes,
    **options,
  )


def _estimate(
  name: str,
  rows: PolicyRows,
  terms: Terms,
  summary: RatioSummary,
  mean_ratio: RatioSummary,
  general: tuple[str, ...],
  confidence: float,
) -> Estimate:
  diagnostics: dict[str, Any]
  if terms.weights is None:
    diagnostics = {"warnings": (MODEL_ALONE, *general)}
  else:
    diagnostics = {
      "effective_sample_size": effective_sample_size(terms.weights),
      "max_weight": float(terms.weights.max()),
      "mean_weight": float(terms.weights.mean()),
      "warnings": weight_warnings(rows, terms.weights, mean_ratio) + general,
    }
  return Estimate(
    name,
    summary.value,
    summary.standard_error,
    summary.interval,
    summary.bootstrap_interval,
    confidence,
    len(rows),
    summary.num_units,
    unlogged_mass=rows.unlogged[1],
    **diagnostics,
  )
