"""Open Bandit Pipeline's `bandit_feedback` dict -> a log with its users and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.data.log import BanditLog
from tf_twostage.errors import InputError, require


def from_bandit_feedback(feedback: Mapping[str, Any], name: str = "bandit feedback") -> BanditLog:
  """Makes a log of Open Bandit Pipeline's `bandit_feedback`.

  Distinct rows of `context` are the users, and their coordinates are the users' features. A one-hot
  `action_context` repeats the items' ids and is left out.
  """
  needed = ("n_rounds", "n_actions", "action", "reward", "context")
  missing = [key for key in needed if key not in feedback]
  if missing:
    raise InputError(f"{name}: missing key(s) {missing}; found {sorted(map(str, feedback))}")
  rounds, num_items = int(feedback["n_rounds"]), int(feedback["n_actions"])
  keys = ("action", "reward", "pscore", "position")
  columns = {key: np.asarray(feedback[key]) for key in keys if feedback.get(key) is not None}
  for key, values in columns.items():
    if values.shape != (rounds,):
      raise InputError(f"{name}: {key} must have the shape ({rounds},), got {values.shape}")
  context = _matrix(name, "context", feedback["context"], rounds)
  distinct, user = np.unique(context, axis=0, return_inverse=True)
  arms = np.zeros((num_items, 0))
  if feedback.get("action_context") is not None:
    arms = _matrix(name, "action_context", feedback["action_context"], num_items)
    if np.array_equal(arms, np.eye(num_items)):
      arms = arms[:, :0]
  users, items = _table("user", "context", distinct), _table("action", "action_context", arms)
  log = BanditLog.from_pandas(
    pd.DataFrame({"user": user.reshape(-1), **columns}),
    user="user",
    item="action",
    reward="reward",
    propensity="pscore" if "pscore" in columns else None,
    position="position" if "position" in columns else None,
    users=users,
    items=items,
    user_features=dict.fromkeys(users.columns[1:], "numeric"),
    item_features=dict.fromkeys(items.columns[1:], "numeric"),
    name=name,
  )
  # A user is a row of numbers: towers read these, so that a later user needs no known id.
  _, *features = log.schema.user
  schema_user = (dataclasses.replace(log.schema.user_id, embedded=False), *features)
  return dataclasses.replace(log, schema=dataclasses.replace(log.schema, user=schema_user))


def _matrix(name: str, key: str, values: Any, rows: int) -> np.ndarray:
  matrix = np.asarray(values, np.float64)
  if matrix.ndim != 2 or len(matrix) != rows or not matrix.shape[1]:
    raise InputError(f"{name}: {key} must be [{rows}, d] numbers with d > 0, got {matrix.shape}")
  finite = np.isfinite(matrix).all(axis=1)
  require(finite, f"{name}: {key}", "must be finite", "fill or drop these rows")
  return matrix


def _table(key: str, name: str, matrix: np.ndarray) -> pd.DataFrame:
  """Rows of numbers with their row number as the id."""
  columns = [f"{name}_{i}" for i in range(matrix.shape[1])]
  return pd.DataFrame(matrix, columns=columns).rename_axis(key).reset_index()
