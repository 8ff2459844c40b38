"""Reduces a policy to what estimators of slates read, on a log of slates.

A policy draws the slots of a slate from the distributions of their rows, given the user: each by
itself, or without the items above. A list that is always the same for a user is of the first kind.
"""

from __future__ import annotations

import numpy as np

from tf_twostage.data.log import BanditLog
from tf_twostage.data.plackett_luce import slot_probabilities
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import PAIRS_PER_CHUNK, ByRow, EvaluationLog
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.evaluation.slates import SlateRows

_LEAST = 1e-13  # probabilities below this part of the largest count as this


def reduce_to_slates(
  evaluation: EvaluationLog,
  reduced: PolicyRows,
  probabilities: ByRow,
  *,
  by_row: bool,
  distinct: bool = False,
) -> SlateRows:
  """The slates of a log with a policy and a reward model.

  The reward model predicts rewards without regard to slots. A slot's prediction is scaled by the
  ratio of logged and predicted rewards in that slot. Where slots are drawn by themselves, later
  slots add their predictions to the return of a slot; else they are left out, which only costs
  variance.

  Args:
    evaluation: a log of slates.
    reduced: the policy and the reward model on its rows, from `reduce_to_rows`.
    probabilities, by_row, distinct: the policy, see `values.TargetPolicy`.

  Raises:
    InputError: the policy is distinct, and differs between rows of one context.
  """
  if distinct and by_row:
    raise InputError("a policy without repeats must be the same in all slots of a slate")
  log, slates = evaluation.slate_log, evaluation.slates
  assert log is not None
  assert slates is not None
  assert log.rows.propensity is not None
  mask, rewards = slates.mask, slates.of(log.rows.reward).astype(np.float64)
  target = slates.of(reduced.target_probabilities)
  # What is left of a distribution without the items above; at least the item itself.
  left = np.maximum(1 - (target.cumsum(axis=1) - target) * distinct, target + _LEAST)
  cascade = log.cascade_propensity
  exposures = predicted = direct = None
  examination = np.ones(mask.shape) if log.examination is None else slates.of(log.examination)
  conditional = target / left
  if distinct:
    target, exposures = _without_repeats(evaluation, probabilities, examination)
  elif by_row and log.examination is not None:
    exposures = _exposures(evaluation, probabilities, examination)
  else:
    exposures = target * examination.sum(axis=1, keepdims=True)
  if reduced.direct_values is not None:
    assert reduced.predicted_rewards is not None
    predicted, direct = slates.of(reduced.predicted_rewards), slates.of(reduced.direct_values)
    sums = predicted.sum(axis=0)
    factors = np.divide(rewards.sum(axis=0), sums, out=np.zeros_like(sums), where=sums > 0)
    if distinct:
      own = slates.of(reduced.target_probabilities) * predicted
      direct = (direct - own.cumsum(axis=1) + own) / left
      direct = factors * np.clip(direct, 0, predicted.max())  # where rounding is all that is left
      predicted = factors * predicted
    else:
      direct = factors * direct
      after = direct[:, ::-1].cumsum(axis=1)[:, ::-1] - direct  # of all later slots
      predicted, direct = factors * predicted + after, direct + after
  return SlateRows(
    rewards,
    mask,
    propensities=slates.of(log.rows.propensity),
    target_probabilities=target,
    cascade_propensities=None if cascade is None else slates.of(cascade),
    target_cascade=None if cascade is None else np.where(mask, conditional, 1.0).cumprod(axis=1),
    examination=None if log.examination is None else examination,
    target_exposures=None if log.examination is None else exposures,
    predicted_returns=predicted,
    direct_returns=direct,
    groups=evaluation.reward_groups,
    group_names=reduced.group_names,
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


def _without_repeats(
  evaluation: EvaluationLog, probabilities: ByRow, examination: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """π(a_k at k) and Σ_j examination_j π(a_k at j) of draws without replacement, [S, L] each."""
  slates, rows = evaluation.slates, evaluation.rows
  assert slates is not None
  assert rows.position is not None
  slots = slates.rows.shape[1]
  first, context = evaluation.distinct_contexts
  order = np.argsort(context, kind="stable")
  begins = np.searchsorted(context[order], np.arange(len(first) + 1))
  slate = np.empty(len(rows), int)
  slate[slates.rows[slates.mask]] = np.nonzero(slates.mask)[0]
  target, exposed = np.empty(len(rows)), np.empty(len(rows))
  size = max(1, PAIRS_PER_CHUNK // (slots * evaluation.num_items))
  for start in range(0, len(first), size):
    chances = np.asarray(probabilities(first[start : start + size]), np.float64)
    logits = np.log(np.maximum(chances, _LEAST * chances.max(axis=1, keepdims=True)))
    at = order[begins[start] : begins[min(start + size, len(first))]]
    in_slots = slot_probabilities(logits, slots)[context[at] - start, rows.action[at]]
    target[at] = in_slots[np.arange(len(at)), rows.position[at]]
    exposed[at] = (in_slots * examination[slate[at]]).sum(axis=1)
  return slates.of(target), slates.of(exposed)


def has_repeats(log: BanditLog) -> bool:
  """Whether a slate of the log has an item twice."""
  slates = log.slates()
  items = np.where(slates.mask, log.rows.action[slates.rows], -1 - np.arange(slates.rows.shape[1]))
  return bool((np.diff(np.sort(items, axis=1), axis=1) == 0).any())
