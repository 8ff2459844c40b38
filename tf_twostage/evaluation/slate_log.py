"""Reduces a policy to what estimators of slates read, on a log of slates.

A policy draws the slots of a slate one by one, each from the distribution of its row: independently
of the other slots, given the user. A list that is always the same for a user is such a policy.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.evaluation.evaluation_log import PAIRS_PER_CHUNK, ByRow, EvaluationLog
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.slates import SlateRows


def reduce_to_slates(
  evaluation: EvaluationLog, reduced: PolicyRows, probabilities: ByRow, *, by_row: bool
) -> SlateRows:
  """The slates of a log with a policy and a reward model.

  The reward model predicts rewards without regard to slots. A slot's prediction is scaled by the
  ratio of logged and predicted rewards in that slot. Where it is known that policies draw slots
  independently, the returns after a slot are those of the following slots on average.

  Args:
    evaluation: a log of slates.
    reduced: the policy and the reward model on its rows, from `reduce_to_rows`.
    probabilities, by_row: the policy, see `values.TargetPolicy`.
  """
  log, slates = evaluation.slate_log, evaluation.slates
  assert log is not None
  assert slates is not None
  assert log.rows.propensity is not None
  mask, rewards = slates.mask, slates.of(log.rows.reward).astype(np.float64)
  target = slates.of(reduced.target_probabilities)
  cascade = log.cascade_propensity
  exposures = predicted = direct = None
  if log.examination is not None:
    examination = slates.of(log.examination)
    exposures = target * examination.sum(axis=1, keepdims=True)
    if by_row:
      exposures = _exposures(evaluation, probabilities, examination)
  if reduced.direct_values is not None:
    assert reduced.predicted_rewards is not None
    predicted, direct = slates.of(reduced.predicted_rewards), slates.of(reduced.direct_values)
    sums = predicted.sum(axis=0)
    factors = np.divide(rewards.sum(axis=0), sums, out=np.zeros_like(sums), where=sums > 0)
    direct = factors * direct
    after = direct[:, ::-1].cumsum(axis=1)[:, ::-1] - direct  # of all later slots
    predicted, direct = factors * predicted + after, direct + after
  return SlateRows(
    rewards,
    mask,
    propensities=slates.of(log.rows.propensity),
    target_probabilities=target,
    cascade_propensities=None if cascade is None else slates.of(cascade),
    target_cascade=None if cascade is None else np.where(mask, target, 1.0).cumprod(axis=1),
    examination=None if log.examination is None else slates.of(log.examination),
    target_exposures=exposures,
    predicted_returns=predicted,
    direct_returns=direct,
    groups=evaluation.reward_groups,
    unlogged=reduced.unlogged,
  )


def _exposures(
  evaluation: EvaluationLog, probabilities: ByRow, examination: np.ndarray
) -> np.ndarray:
  """Σ_j examination_j π(a_k at j), [S, L], for policies that differ by slot."""
  slates, num_items = evaluation.slates, evaluation.num_items
  assert slates is not None
  rows = np.maximum(slates.rows, 0)  # slots that were not shown have an examination of 0
  out, size = np.empty(rows.shape), max(1, PAIRS_PER_CHUNK // (rows.shape[1] * num_items))
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    in_slots = np.asarray(probabilities(part.ravel())).reshape(*part.shape, num_items)
    shown = np.take_along_axis(in_slots, evaluation.rows.action[part][:, np.newaxis], axis=2)
    out[start : start + size] = np.einsum("sj,sjk->sk", examination[start : start + size], shown)
  return out
