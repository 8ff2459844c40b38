"""Open Bandit Pipeline's `bandit_feedback` dict -> a log with its users and items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_twostage.data.log import BanditLog
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Feature, Id, Schema, unit_range
from tf_twostage.errors import InputError


def from_bandit_feedback(feedback: Mapping[str, Any], name: str = "bandit feedback") -> BanditLog:
  """The `bandit_feedback` dict of Open Bandit Pipeline, in memory.

  Distinct rows of `context` are the users, their coordinates the users' features; a one-hot
  `action_context` says no more than the item's id and is left out.

  Args:
    feedback: `n_rounds`, `n_actions`, `action` [n], `reward` [n]; `context` [n, d]; `pscore` [n],
      `position` [n] and `action_context` [N, d'] may be None or absent.
    name: what to call the data.

  Raises:
    InputError: a key is missing, or a value has the wrong shape, type or range.
  """
  missing = [
    k for k in ("n_rounds", "n_actions", "action", "reward", "context") if k not in feedback
  ]
  if missing:
    raise InputError(f"{name}: missing key(s) {missing}; found {sorted(map(str, feedback))}")
  rows, num_items = int(feedback["n_rounds"]), int(feedback["n_actions"])
  context = _matrix(name, "context", feedback["context"], rows)
  distinct, user_index = np.unique(context, axis=0, return_inverse=True)
  arms = feedback.get("action_context")
  if arms is not None:
    arms = _matrix(name, "action_context", arms, num_items)
    if arms.shape == (num_items, num_items) and (arms == np.eye(num_items)).all():
      arms = None
  users, user_features = _vectors("context", distinct)
  items, item_features = _vectors(
    "action_context", np.zeros((num_items, 0)) if arms is None else arms
  )
  ids: dict[str, np.ndarray] = {
    "user_id": np.arange(len(distinct)).astype(str),
    "item_id": np.arange(num_items).astype(str),
  }
  position = feedback.get("position")
  log = LogRows(
    user_index=user_index.reshape(-1),
    action=feedback["action"],
    propensity=feedback.get("pscore"),
    reward=feedback["reward"],
    position=None if position is None else np.asarray(position),
  )
  return BanditLog(
    name=name,
    # A user is a row of numbers here: towers read those, and a user met later is as good as one.
    schema=Schema(
      user=(Id("user_id", tuple(ids["user_id"].tolist()), embedded=False), *user_features),
      item=(Id("item_id", tuple(ids["item_id"].tolist())), *item_features),
    ),
    users={"user_id": ids["user_id"], **users},
    items={"item_id": ids["item_id"], **items},
    titles=ids["item_id"],
    rows=log,
  )


def _matrix(name: str, key: str, values: Any, rows: int) -> np.ndarray:
  matrix = np.asarray(values, np.float64)
  if matrix.ndim != 2 or len(matrix) != rows or not matrix.shape[1]:
    raise InputError(f"{name}: {key} must be [{rows}, d] numbers with d > 0, got {matrix.shape}")
  if not np.isfinite(matrix).all():
    raise InputError(f"{name}: {key} holds numbers that are not finite; fill or drop them")
  return matrix


def _vectors(name: str, matrix: np.ndarray) -> tuple[dict[str, np.ndarray], list[Feature]]:
  """Columns of a matrix as numeric features."""
  columns = {f"{name}_{i}": column for i, column in enumerate(matrix.T)}
  return columns, [unit_range(name, column) for name, column in columns.items()]
