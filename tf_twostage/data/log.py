"""A log of one's own with its users and items: the arrays that training and evaluation take."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import FeatureTable, Schema, check_table
from tf_twostage.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class BanditLog:
  """Users, items and what an older policy showed; row i of a table is index i of the log.

  Attributes:
    name: where the log came from, for people.
    schema: the features of users, items and context, with their vocabularies.
    users: raw user features by name, [U] each ([U, max_length] for a bag).
    items: raw item features by name, [N] each.
    titles: what to call an item when showing it, [N] str.
    log: n rows; its propensity is None where the log has none.
    time: when each row was shown, [n] float64, seconds where the log had dates; or None.
    ranker_score: what the ranker in production gave the row's item, [n] float32, or None.
    split: what the log says each row is for, [n] str, or None.
    notes: what a reader should know, such as that rows were left out; sentences.
    estimated_propensities: whether those of the log are an estimate, and not what was logged.

  Raises:
    InputError: tables, log and columns do not fit each other.
  """

  name: str
  schema: Schema
  users: FeatureTable
  items: FeatureTable
  titles: np.ndarray
  log: LogRows
  time: np.ndarray | None = None
  ranker_score: np.ndarray | None = None
  split: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  estimated_propensities: bool = False

  def __post_init__(self):
    if not len(self.log):
      raise InputError(f"{self.name}: the log has no rows; log some traffic first")
    sizes = {
      "user features": (check_table(self.schema.user, self.users, "user features"), self.num_users),
      "item features": (check_table(self.schema.item, self.items, "item features"), self.num_items),
      "titles": (len(self.titles), self.num_items),
      "user_index": (max(self.log.user_index.max() + 1, self.num_users), self.num_users),
      "action": (max(self.log.action.max() + 1, self.num_items), self.num_items),
    }
    sizes |= {name: (len(values), len(self.log)) for name, values in self._columns().items()}
    wrong = {name: size for name, size in sizes.items() if size[0] != size[1]}
    if wrong:
      raise InputError(f"{self.name}: found and expected sizes differ: {wrong}")

  def _columns(self) -> dict[str, np.ndarray]:
    """The columns beside the log's own, [n] each."""
    columns = {"time": self.time, "ranker_score": self.ranker_score, "split": self.split}
    return {name: values for name, values in columns.items() if values is not None}

  @property
  def num_users(self) -> int:
    return self.schema.num_users

  @property
  def num_items(self) -> int:
    return self.schema.num_items

  @property
  def has_propensities(self) -> bool:
    return self.log.propensity is not None

  def select(self, rows: np.ndarray | slice) -> BanditLog:
    """The same users and items with some rows of the log: a mask [n], indices, or a slice."""
    columns: dict[str, Any] = {name: values[rows] for name, values in self._columns().items()}
    return dataclasses.replace(self, log=self.log.select(rows), **columns)

  def with_propensities(self, propensity: np.ndarray) -> BanditLog:
    """The same data with these propensities, [n] in (0, 1], which are an estimate."""
    log = dataclasses.replace(self.log, propensity=propensity)
    return dataclasses.replace(self, log=log, estimated_propensities=True)

  def fingerprint(self) -> str:
    """SHA-256 of the schema and of every array, as 64 hex digits."""
    digest = hashlib.sha256(self.schema.to_json().encode())
    arrays = {f"user.{k}": v for k, v in self.users.items()}
    arrays |= {f"item.{k}": v for k, v in self.items.items()}
    arrays |= {f"context.{k}": v for k, v in self.log.context.items()}
    arrays |= {"titles": self.titles, **self.log.columns(), **self._columns()}
    for name, values in sorted(arrays.items()):
      # The header keeps arrays apart whose bytes alone would run together.
      digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
      digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
