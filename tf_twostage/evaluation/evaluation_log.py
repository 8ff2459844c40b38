"""Rows to evaluate policies on, what is known beyond them, and how policies are reduced to rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.slates import Slates
from tf_twostage.errors import InputError
from tf_twostage.evaluation.rows import PolicyRows
from tf_twostage.models.encoders import Codes

# Maps row numbers of a log, [m] int, to one number for each item of the catalogue: [m, N].
ByRow = Callable[[np.ndarray], Any]

_CONTEXTS_PER_CHUNK = 1024
PAIRS_PER_CHUNK = 2**22  # 16 MB for each array [m, N], of which a reduction holds about a dozen
_OVERSHOOT = 1e-3  # of probabilities, by the quadrature of two-stage policies


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationLog:
  """Logged rows that no evaluated policy has learned from, and what is known beyond them.

  A context is a user with a history, the values of the context features and the items that could be
  shown. Policies and reward models answer the same to all rows of one context.

  Attributes:
    rows: n rows with propensities. Its context features are what a policy sees when it decides, so
      they must not depend on the action.
    num_items: size of the catalogue, N.
    stage: name that differs wherever the log does; cached results depend on it.
    notes: sentences to print with the estimates.
    expected_rewards: r(x_i, a), the reward that each item would have had; None: unknown.
    logging_probabilities: β(a | x_i); None: known for the logged actions alone.
    grouped: whether rows of one user depend on each other. False where users are mere
      combinations of features.
    user_ids: [U] ids of users, for messages; None: their numbers.
    slate_log: the same rows as slots of slates, as they were logged; None: rows are shown one by
      one.
  """

  rows: LogRows
  num_items: int
  stage: str
  notes: tuple[str, ...] = ()
  expected_rewards: ByRow | None = None
  logging_probabilities: ByRow | None = None
  grouped: bool = True
  user_ids: Sequence[str] | None = None
  slate_log: BanditLog | None = None

  def __post_init__(self):
    if not len(self.rows):
      raise InputError(f"{self.stage}: no rows; evaluate on a log that has some")
    if self.rows.propensity is None:
      raise InputError(
        f"{self.stage}: the log has no propensities, and weights need them; estimate them before"
        " the log is split: log = estimate_propensities(log)"
      )

  @classmethod
  def of(cls, log: BanditLog) -> EvaluationLog:
    """All rows of a user's log, with rewards as if every slot were examined.

    Raises:
      InputError: the log has no propensities, or its rows are no impressions.
    """
    require_impressions(log)
    stage = f"{log.name}-{log.fingerprint()[:10]}"
    return cls(
      log.examined(),
      log.num_items,
      stage,
      log.notes,
      grouped=log.schema.user_id.embedded,
      user_ids=log.schema.user_id.vocabulary,
      slate_log=None if log.slate is None else log,
    )

  def __len__(self) -> int:
    return len(self.rows)

  @functools.cached_property
  def slates(self) -> Slates | None:
    """The rows by slate and slot; None: rows are shown one by one."""
    return None if self.slate_log is None else self.slate_log.slates()

  @property
  def rewards(self) -> np.ndarray:
    """The reward of each row, [n], or of each slate, [S]."""
    if self.slates is None or self.slate_log is None:
      return self.rows.reward
    return self.slates.of(self.slate_log.rows.reward).sum(axis=1)

  @property
  def reward_groups(self) -> np.ndarray | None:
    """The user of each reward, if rewards of one user depend on each other; else None."""
    if not self.grouped:
      return None
    return self.rows.user_index if self.slates is None else self.slates.user_index

  @property
  def groups(self) -> np.ndarray | None:
    """[n] users, if rows of one user depend on each other; None: all rows are independent."""
    return self.rows.user_index if self.grouped else None

  @functools.cached_property
  def num_units(self) -> int:
    """The number of users in the rows, if their rows depend on each other, or of rows."""
    return len(self) if self.groups is None else len(np.unique(self.groups))

  @functools.cached_property
  def distinct_contexts(self) -> tuple[np.ndarray, np.ndarray]:
    """Those of all rows; see `distinct_contexts`."""
    return distinct_contexts(self.rows)


def distinct_contexts(rows: LogRows) -> tuple[np.ndarray, np.ndarray]:
  """The first row of each distinct context, [S], and the context of each row, [n] in [0, S)."""
  columns = [rows.user_index.astype(np.float64), *rows.context.values()]
  columns += [] if rows.catalogue is None else [rows.catalogue]
  for past in rows.histories.values():
    columns += [past.begin, past.end] + ([] if past.now is None else [past.now])
  _, first, index = np.unique(
    np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
  )
  return first, index.reshape(-1)


def require_impressions(log: BanditLog) -> None:
  """Raises InputError if the rows are ratings or orders: nobody knows what else was shown."""
  if not log.impressions:
    raise InputError(
      f"{log.name}: off-policy estimates need what was shown and its propensities, and these rows"
      " are ratings or orders: what users chose, from what nobody logged. Log impressions; or, if"
      " exposures of these rows are known, name them as `propensity` in the schema of a log"
    )


def model_inputs(log: LogRows, rows: np.ndarray, users: Codes) -> dict[str, Any]:
  """What models read in rows [m] of a log, given the codes of all users."""
  index = log.user_index[rows]
  available = log.available(rows)
  return {
    "user": {n: tf.gather(codes, index) for n, codes in users.items()} | log.past(rows),
    "context": {name: tf.constant(values[rows]) for name, values in log.context.items()},
    "user_index": tf.constant(index),
    **({} if available is None else {"available": available}),
  }


def reduce_to_rows(
  evaluation: EvaluationLog,
  answer: Callable[[np.ndarray], tuple[Sequence[Any], Any]],
  *,
  by_row: bool = False,
  action_mass: bool = True,
) -> list[tuple[PolicyRows, float]]:
  """Reduces policies to what estimators read of each row, and to their true values.

  Arrays [m, N] exist for one chunk at a time, and are made once for each distinct context. What a
  policy gives to items that could not be shown goes to the others, in proportion.

  Args:
    evaluation: the log, n rows.
    answer: maps row numbers [m] to the probabilities under each of P policies, [m, N] arrays or
      tensors, and to the predicted rewards [m, N], or None without a reward model.
    by_row: whether answers differ between rows of one context.
    action_mass: whether to compute each policy's mass on every item, and to check that it is
      a distribution; without it the warning about unlogged actions is missing.

  Returns:
    For each policy its rows, and (1/n) Σ_i Σ_a π(a | x_i) r(x_i, a); NaN if r is unknown.
  """
  log, n = evaluation.rows, len(evaluation)
  first, context = (np.arange(n), np.arange(n)) if by_row else evaluation.distinct_contexts
  order = np.argsort(context, kind="stable")
  begins = np.searchsorted(context[order], np.arange(len(first) + 1))
  size = max(1, min(_CONTEXTS_PER_CHUNK, PAIRS_PER_CHUNK // evaluation.num_items))
  columns, masses = [], []
  for start in range(0, len(first), size):
    asked = first[start : start + size]
    rows = order[begins[start] : begins[start + len(asked)]]
    pairs = context[rows] - start, log.action[rows]
    policies, rewards = answer(asked)
    known = evaluation.expected_rewards and evaluation.expected_rewards(asked)
    arrays = [_available(np.asarray(policy), log.available(asked)) for policy in policies]
    columns.append(np.stack([_columns(policy, rewards, known, pairs) for policy in arrays]))
    # Not a BLAS product, whose threads wait for each other on a busy machine.
    weights = np.bincount(pairs[0], minlength=len(asked))
    if action_mass:
      masses.append([np.einsum("s,sn->n", weights.astype(p.dtype), p) for p in arrays])
  of_rows = np.concatenate(columns, axis=2)[:, :, np.argsort(order)]
  shown = np.bincount(log.action, minlength=evaluation.num_items) if action_mass else None
  total: Any = np.sum(masses, axis=0, dtype=np.float64) if action_mass else [None] * len(of_rows)
  assert log.propensity is not None  # checked by EvaluationLog
  results = []
  for (target, predicted, direct, truth), mass in zip(of_rows, total, strict=True):
    reduced = PolicyRows(
      rewards=log.reward,
      propensities=log.propensity,
      target_probabilities=np.where(target <= 1 + _OVERSHOOT, np.minimum(target, 1), target),
      predicted_rewards=None if rewards is None else predicted,
      direct_values=None if rewards is None else direct,
      groups=evaluation.groups,
      group_names=evaluation.user_ids,
      action_mass=mass,
      action_counts=shown,
    )
    if mass is not None and not abs(mass.sum() / n - 1) <= _OVERSHOOT:
      raise InputError(
        f"probabilities sum to {mass.sum() / n:.4g} over the catalogue, on average of {n} rows;"
        " return a distribution for each row (a softmax, not logits)"
      )
    results.append((reduced, float(truth.mean())))
  return results


def _available(policy: np.ndarray, available: Any) -> np.ndarray:
  """Probabilities [m, N] of the available items alone, with the same sums."""
  if available is None:
    return policy
  kept = np.where(available, policy, 0)
  total, left = policy.sum(axis=1, keepdims=True), kept.sum(axis=1, keepdims=True)
  if not (left > 0).all():
    raise InputError(
      f"a policy gives all probability to items that could not be shown, in {(left <= 0).sum()}"
      f" of {len(left)} contexts; give some to the items that were available"
    )
  return kept * (total / left)


def _columns(
  policy: np.ndarray, rewards: Any, known: Any, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
  """π(a_i), rhat(a_i), Σ_a π(a) rhat(a) and Σ_a π(a) r(a) of R rows: [4, R], NaN if unknown."""
  result = np.full((4, len(pairs[0])), np.nan)
  result[0] = policy[pairs]
  if rewards is not None:
    rewards = np.asarray(rewards)
    result[1] = rewards[pairs]
    result[2] = np.vecdot(policy, rewards)[pairs[0]]
  if known is not None:
    result[3] = np.vecdot(policy, np.asarray(known))[pairs[0]]
  return result
