"""Values of policies on an evaluation log: estimated, true where known, and how they agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from tf_twostage.evaluation import off_policy
from tf_twostage.evaluation.evaluation_log import ByRow, EvaluationLog
from tf_twostage.evaluation.off_policy import Estimate
from tf_twostage.evaluation.overlap import MODEL_ALONE
from tf_twostage.evaluation.rows import PolicyRows

LOGGING_POLICY = "logging policy"
ESTIMATORS = {
  name: off_policy.ESTIMATORS[name] for name in ("dm", "ips", "snips", "dr", "switch_dr")
}
_PAIRS_PER_CHUNK = 2**22  # 16 MB of probabilities, of which an evaluation holds several


@dataclasses.dataclass(frozen=True)
class TargetPolicy:
  """A policy to be evaluated.

  Attributes:
    name: for people.
    kind: policies of one kind are compared with each other.
    probabilities: π(a | x_i) of rows of the evaluation log; they sum to 1.
    by_row: whether it may tell rows of one user in one context apart.
  """

  name: str
  kind: str
  probabilities: ByRow
  by_row: bool = False


@dataclasses.dataclass(frozen=True)
class Valuation:
  """What a policy is worth: the expected reward of one item that it shows.

  Attributes:
    policy, kind: as of the target policy.
    estimates: one for each estimator.
    truth: the true value on the contexts of the log; NaN where it is not known.
  """

  policy: str
  kind: str
  estimates: tuple[Estimate, ...]
  truth: float


def evaluate(
  policy: TargetPolicy, evaluation: EvaluationLog, reward_model: ByRow, *, seed: int
) -> Valuation:
  """A target policy by all of `ESTIMATORS`.

  Args:
    policy: the target policy.
    evaluation: the log.
    reward_model: predicted rewards of rows of the log, by models that have not seen them.
    seed: of the bootstrap.
  """
  rows, truth = reduce_to_rows(policy, evaluation, reward_model)
  estimates = off_policy.evaluate(rows, ESTIMATORS, seed=seed)
  return Valuation(policy.name, policy.kind, tuple(estimates), truth)


def logging_policy(evaluation: EvaluationLog, *, seed: int) -> Valuation:
  """The logging policy, by the mean of what it earned."""
  log, truth = evaluation.log, np.nan
  if evaluation.logging_probabilities is not None:
    policy = TargetPolicy(LOGGING_POLICY, LOGGING_POLICY, evaluation.logging_probabilities)
    truth = reduce_to_rows(policy, evaluation)[1]
  estimate = off_policy.on_policy(log.reward, evaluation.groups, seed=seed)
  return Valuation(LOGGING_POLICY, LOGGING_POLICY, (estimate,), truth)


def reduce_to_rows(
  policy: TargetPolicy, evaluation: EvaluationLog, reward_model: ByRow | None = None
) -> tuple[PolicyRows, float]:
  """The log as a policy and a reward model see it, and the policy's true value.

  Of all [n, N] probabilities and predictions no more than a chunk is ever there, and each
  situation is asked about once.

  Returns:
    rows for `off_policy.evaluate`, and (1/n) Σ_i Σ_a π(a | x_i) r(x_i, a), NaN where r is not
    known.
  """
  log, n = evaluation.log, len(evaluation)
  asked, answer = (np.arange(n), np.arange(n)) if policy.by_row else evaluation.situations
  by_answer = np.argsort(answer, kind="stable")
  counts = np.bincount(answer)
  ends = np.cumsum(counts)
  target, predicted = np.empty(n), np.empty(n)
  direct, true = np.empty(len(asked)), np.full(len(asked), np.nan)
  mass = np.zeros(evaluation.num_items)
  size = max(1, _PAIRS_PER_CHUNK // evaluation.num_items)
  for start in range(0, len(asked), size):
    part = slice(start, start + size)
    rows = by_answer[ends[start] - counts[start] : ends[part][-1]]
    place = answer[rows] - start, log.action[rows]
    probabilities = policy.probabilities(asked[part])
    target[rows] = probabilities[place]
    mass += counts[part] @ probabilities
    if reward_model is not None:
      rewards = reward_model(asked[part])
      predicted[rows] = rewards[place]
      direct[part] = (probabilities * rewards).sum(axis=1, dtype=np.float64)
    if evaluation.expected_rewards is not None:
      known = evaluation.expected_rewards(asked[part])
      true[part] = (probabilities * known).sum(axis=1, dtype=np.float64)
  assert log.propensity is not None  # an evaluation log has them
  rows_seen = PolicyRows(
    rewards=log.reward,
    propensities=log.propensity,
    target_probabilities=target,
    predicted_rewards=None if reward_model is None else predicted,
    direct_values=None if reward_model is None else direct[answer],
    groups=evaluation.groups,
    action_mass=mass,
    action_counts=np.bincount(log.action, minlength=evaluation.num_items),
  )
  return rows_seen, float(true[answer].mean())


def to_frame(valuations: Iterable[Valuation]) -> pd.DataFrame:
  """One row for each policy and estimator: policy, kind, estimator, value, truth, thin (whether the
  log tells too little), and the other columns of `off_policy.to_frame`."""
  parts = []
  for valuation in valuations:
    frame = off_policy.to_frame(valuation.estimates).reset_index()
    frame.insert(0, "policy", valuation.policy)
    frame.insert(1, "kind", valuation.kind)
    frame.insert(4, "truth", valuation.truth)
    thin = [set(estimate.warnings) - {MODEL_ALONE} for estimate in valuation.estimates]
    frame.insert(5, "thin", list(map(bool, thin)))
    parts.append(frame)
  return pd.concat(parts, ignore_index=True)


def agreement(estimates: pd.DataFrame) -> pd.DataFrame:
  """How estimates compare with true values, over the policies of each kind.

  Args:
    estimates: from `to_frame`. Rows without a truth, and kinds of fewer than three policies,
      are left out.

  Returns:
    by kind and estimator: policies, how many; spearman and kendall, rank correlations with the
    truth; error, the mean of value - truth; rmse; in_normal and in_bootstrap, how many intervals
    hold the truth; regret, what the policy of the highest estimate lacks to the best one. A value
    of NaN counts as a policy, and for nothing else.
  """
  known = estimates[estimates["truth"].notna()]
  rows = {
    key: _agreement(group)
    for key, group in known.groupby(["kind", "estimator"], sort=False)
    if len(group) > 2
  }
  index = pd.MultiIndex.from_tuples(rows, names=["kind", "estimator"])
  return pd.DataFrame(list(rows.values()), index=index)


def _agreement(group: pd.DataFrame) -> Mapping[str, float]:
  valued = group[group["value"].notna()]
  value, truth = valued["value"].to_numpy(), valued["truth"].to_numpy()
  error = value - truth
  ranked = len(valued) > 1 and np.ptp(value) > 0 and np.ptp(truth) > 0

  def holding(name: str) -> int:
    return int(valued["truth"].between(valued[f"{name}_low"], valued[f"{name}_high"]).sum())

  return {
    "policies": len(group),
    "spearman": stats.spearmanr(value, truth).statistic if ranked else np.nan,
    "kendall": stats.kendalltau(value, truth).statistic if ranked else np.nan,
    "error": error.mean() if len(valued) else np.nan,
    "rmse": np.sqrt((error**2).mean()) if len(valued) else np.nan,
    "in_normal": holding("interval"),
    "in_bootstrap": holding("bootstrap_interval"),
    "regret": group["truth"].max() - truth[value.argmax()] if len(valued) else np.nan,
  }
