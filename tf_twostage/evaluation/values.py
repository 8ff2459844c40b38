"""Values of policies on an evaluation log: estimated, true where known, and how they agree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy

from tf_twostage.errors import InputError
from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.estimators import ESTIMATORS, Estimator, Estimators, by_name
from tf_twostage.evaluation.evaluation_log import ByRow, EvaluationLog, reduce_to_rows
from tf_twostage.evaluation.off_policy import Estimate
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.slate_estimators import SLATE_ESTIMATORS, supported
from tf_twostage.evaluation.slate_log import reduce_to_slates
from tf_twostage.evaluation.slates import SlateRows

LOGGING_POLICY = "logging policy"
REPORTED = ("dm", "ips", "snips", "dr", "switch_dr")  # estimators of rows by default


def reported(evaluation: EvaluationLog, of_rows: Sequence[str] = REPORTED) -> list[str]:
  """The estimators to choose where none is asked for: those that fit what was logged."""
  log = evaluation.slate_log
  if log is None:
    return list(of_rows)
  exposures, cascade = log.examination is not None, log.cascade_propensity is not None
  return supported(exposures=exposures, cascade=cascade, model=True)


def chosen(evaluation: EvaluationLog, estimators: Estimators) -> dict[str, Estimator]:
  """Estimators by name, of rows or of slates, as the log has them.

  Raises:
    InputError: a name is unknown, or is not of such a log.
  """
  try:
    return by_name(estimators, ESTIMATORS if evaluation.slates is None else SLATE_ESTIMATORS)
  except InputError as error:
    if evaluation.slates is None:
      raise InputError(f"{error}; estimators of slates need a log of slates") from error
    raise InputError(f"{error}, of slates; without `slate_id` each row is an action") from error


@dataclasses.dataclass(frozen=True)
class TargetPolicy:
  """A policy to be evaluated.

  Attributes:
    name: for tables and plots.
    kind: policies of one kind are compared with each other.
    probabilities: maps row numbers of the evaluation log, [m], to π(a | x_i), [m, N] arrays or
      tensors whose rows sum to 1.
    by_row: whether probabilities differ between rows of one context (one user with the same
      context features).
    distinct: on a log of slates, whether a slate has no item twice: each slot is drawn from the
      probabilities without the items above. Otherwise each slot is drawn by itself.
  """

  name: str
  kind: str
  probabilities: ByRow
  by_row: bool = False
  distinct: bool = False

  def reduce(
    self, evaluation: EvaluationLog, reward_model: ByRow | None = None
  ) -> tuple[PolicyRows | SlateRows, float]:
    """Its rows or slates of a log, and its true value; NaN if unknown. See `reduce_to_rows`."""

    def answer(rows: np.ndarray):
      return [self.probabilities(rows)], reward_model and reward_model(rows)

    (reduced,) = reduce_to_rows(evaluation, answer, by_row=self.by_row)
    if evaluation.slates is None:
      return reduced
    rows, _ = reduced
    slates = reduce_to_slates(
      evaluation, rows, self.probabilities, by_row=self.by_row, distinct=self.distinct
    )
    return slates, np.nan


def mixture(name: str, parts: Sequence[tuple[float, TargetPolicy]]) -> TargetPolicy:
  """Σ α π, for policies and their shares α: one of the policies is drawn, and draws the item.

  On a log of slates this happens for each slot.

  Raises:
    InputError: shares are not above 0, or do not add up to 1.
  """
  shares = [share for share, _ in parts]
  if not parts or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
    raise InputError(f"{name}: shares must be above 0 and add up to 1, got {shares}")

  def probabilities(rows: np.ndarray) -> np.ndarray:
    total = sum(share * np.asarray(policy.probabilities(rows)) for share, policy in parts)
    return np.asarray(total)

  by_row, distinct = (any(getattr(p, n) for _, p in parts) for n in ("by_row", "distinct"))
  return TargetPolicy(name, "mixture", probabilities, by_row=by_row, distinct=distinct)


def evaluate(
  evaluation: EvaluationLog,
  policies: Iterable[TargetPolicy],
  estimators: Estimators | None = None,
  *,
  reward_model: ByRow | None = None,
  **options: Any,
) -> pd.DataFrame:
  """Evaluates the logging policy, by the mean of its rewards, and then every target policy.

  Args:
    evaluation: the log.
    policies: the target policies; read one after the other.
    estimators: as for `off_policy.evaluate`. None: see `reported`.
    reward_model: maps row numbers, [m], to predicted rewards of every item, [m, N], by models that
      have not seen these rows.
    **options: confidence, num_resamples and seed, as for `off_policy.evaluate`.

  Returns:
    A row for each policy and estimator: policy, kind, estimator, value, truth (NaN if unknown),
    unreliable, the other columns of `off_policy.to_frame`, and influence, an array each.
  """
  estimators = chosen(evaluation, reported(evaluation) if estimators is None else estimators)
  truth = np.nan
  if evaluation.logging_probabilities and evaluation.expected_rewards:
    logging = TargetPolicy(LOGGING_POLICY, LOGGING_POLICY, evaluation.logging_probabilities)
    _, truth = logging.reduce(evaluation)
  estimate = off_policy.on_policy(evaluation.rewards, evaluation.reward_groups, **options)
  parts = [_frame(LOGGING_POLICY, LOGGING_POLICY, [estimate], truth)]
  for policy in policies:
    try:
      rows, truth = policy.reduce(evaluation, reward_model)
      estimates = off_policy.evaluate(rows, estimators, **options)
    except InputError as error:
      raise InputError(f"{policy.name}: {error}") from error
    parts.append(_frame(policy.name, policy.kind, estimates, truth))
  return pd.concat(parts, ignore_index=True)


def _frame(policy: str, kind: str, estimates: list[Estimate], truth: float) -> pd.DataFrame:
  frame = off_policy.to_frame(estimates).reset_index()
  frame.insert(0, "policy", policy)
  frame.insert(1, "kind", kind)
  frame.insert(4, "truth", truth)
  frame.insert(5, "unreliable", frame.pop("unreliable"))
  frame["influence"] = pd.Series([estimate.influence for estimate in estimates], dtype=object)
  return frame


def differences(estimates: pd.DataFrame) -> pd.DataFrame:
  """How much more one policy earns than another, paired: both are valued on the same rows.

  Args:
    estimates: from `evaluate`.

  Returns:
    A row for each pair of target policies and each estimator: policy, kind, versus and versus_kind
    in the order of the estimates; estimator; difference, standard_error, low and high, the bounds
    with Student's t; unreliable, whether either estimate is.
  """
  rows = []
  targets = estimates[estimates["kind"] != LOGGING_POLICY]
  for name, group in targets.groupby("estimator", sort=False):
    pairs: Iterator[Any] = itertools.combinations(group.itertuples(), 2)
    for first, second in pairs:
      value, error, (low, high) = off_policy.difference(first, second, first.confidence)
      rows.append(
        {
          "policy": first.policy,
          "kind": first.kind,
          "versus": second.policy,
          "versus_kind": second.kind,
          "estimator": name,
          "difference": value,
          "standard_error": error,
          "low": low,
          "high": high,
          "unreliable": first.unreliable or second.unreliable,
        }
      )
  return pd.DataFrame(rows)


def ranked_by_support(
  estimates: pd.DataFrame, kinds: Collection[str], largest_reward: float, penalty: float = 1.0
) -> pd.DataFrame:
  """Policies of some kinds by doubly robust value less a penalty for thin support, best first.

  The burden of a policy is largest_reward (sqrt(Σ_g ω_g²) / n + its mass on unlogged actions), with
  ω_g the sum of weights over a unit: about the standard error of IPS if every reward were the
  largest, plus what the mass could earn at most. It depends on the policy and the log alone, not on
  rewards or a reward model, so that luck with few rows does not hide it.

  Args:
    estimates: from `evaluate`, with the estimator "dr".
    kinds: of the policies.
    largest_reward: the scale of the burden.
    penalty: how many burdens are subtracted.

  Returns:
    columns policy, value, burden, score = value - penalty * burden, and truth.

  Raises:
    InputError: there is no such policy, or "dr" was not estimated.

  References:
    Chapagain, CASP: Support-Aware Offline Policy Selection for Two-Stage Recommender Systems, arXiv
      2604.23022, 2026, for the principle; the burden is our own.
  """
  own = estimates[estimates["kind"].isin(kinds) & (estimates["estimator"] == "dr")]
  if own.empty:
    raise InputError(
      f"no policy of kind {' or '.join(map(repr, kinds))} has an estimate by dr; add the estimator"
      " dr"
    )
  with np.errstate(divide="ignore"):
    noise = own["mean_weight"] / np.sqrt(own["effective_sample_size"])
  burden = largest_reward * (noise.fillna(np.inf) + own["unlogged_mass"].fillna(0.0))
  ranked = own[["policy", "value"]].assign(
    burden=burden, score=own["value"] - penalty * burden, truth=own["truth"]
  )
  return ranked.sort_values("score", ascending=False, ignore_index=True)


def agreement(estimates: pd.DataFrame) -> pd.DataFrame:
  """Compares estimates with true values, over the policies of each kind.

  Rows without a truth, and kinds of fewer than three policies, are left out.

  Returns:
    By kind and estimator: policies, how many; spearman and kendall, rank correlations with the
    truth; error, the mean of value - truth; rmse; in_normal and in_bootstrap, how many intervals
    contain the truth; regret, the truth of the best policy minus that of the one with the highest
    estimate. A value of NaN counts as a policy and for nothing else.
  """
  known = estimates[estimates["truth"].notna()]
  rows = {
    key: _agreement(group)
    for key, group in known.groupby(["kind", "estimator"], sort=False)
    if len(group) > 2
  }
  index = pd.MultiIndex.from_tuples(rows, names=["kind", "estimator"])
  return pd.DataFrame(list(rows.values()), index=index)


def _agreement(group: pd.DataFrame) -> dict[str, float]:
  valued = group[group["value"].notna()]
  value, truth = valued["value"].to_numpy(), valued["truth"].to_numpy()
  error = value - truth
  ranked = len(valued) > 1 and np.ptp(value) > 0 and np.ptp(truth) > 0

  def covered(name: str) -> int:
    return int(valued["truth"].between(valued[f"{name}_low"], valued[f"{name}_high"]).sum())

  return {
    "policies": len(group),
    "spearman": scipy.stats.spearmanr(value, truth).statistic if ranked else np.nan,
    "kendall": scipy.stats.kendalltau(value, truth).statistic if ranked else np.nan,
    "error": error.mean() if len(valued) else np.nan,
    "rmse": np.sqrt((error**2).mean()) if len(valued) else np.nan,
    "in_normal": covered("interval"),
    "in_bootstrap": covered("bootstrap_interval"),
    "regret": group["truth"].max() - truth[value.argmax()] if len(valued) else np.nan,
  }
