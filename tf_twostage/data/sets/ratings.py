"""Ratings of items by users: the arrays that every ratings data set becomes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tf_twostage.data.schema import Feature, FeatureTable, Id, Numeric, Schema, check_table
from tf_twostage.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class RatingsData:
  """Users, items and the ratings between them; row i of a table is catalogue index i.

  Strings are NumPy unicode arrays and bags are padded with "".

  Attributes:
    name: the data set's name.
    schema: the features of users, items and context.
    users: raw user features by name, [U] each.
    items: raw item features by name, [N] each ([N, max_length] for a bag).
    titles: what to call an item when showing it, [N] str.
    user_index: who rated, [R] int32 in [0, U).
    item_index: what was rated, [R] int32 in [0, N).
    rating: the ratings, [R] float32.
    context: raw context features of each rating by name, [R] float64.

  Raises:
    InputError: a table does not fit the schema, an index points outside its table, lengths or
      types differ from the above, or there are no ratings.
  """

  name: str
  schema: Schema
  users: dict[str, np.ndarray]
  items: dict[str, np.ndarray]
  titles: np.ndarray
  user_index: np.ndarray
  item_index: np.ndarray
  rating: np.ndarray
  context: dict[str, np.ndarray]

  def __post_init__(self):
    _check_side(self.schema.user, self.schema.user_id, self.users, f"{self.name}: user features")
    _check_side(self.schema.item, self.schema.item_id, self.items, f"{self.name}: item features")
    if self.titles.shape != (self.num_items,) or self.titles.dtype.kind != "U":
      raise InputError(
        f"{self.name}: titles must be {self.num_items} strings, one per item, got"
        f" {self.titles.dtype} {self.titles.shape}"
      )
    rows = len(self.rating)
    if not rows:
      raise InputError(f"{self.name}: there are no ratings")
    ratings = {"user_index": np.int32, "item_index": np.int32, "rating": np.float32}
    for column, dtype in ratings.items():
      values = getattr(self, column)
      if values.shape != (rows,) or values.dtype != dtype:
        raise InputError(
          f"{self.name}: {column} must be {np.dtype(dtype)} ({rows},), got"
          f" {values.dtype} {values.shape}"
        )
    for column, limit in (("user_index", self.num_users), ("item_index", self.num_items)):
      values = getattr(self, column)
      outside = np.flatnonzero((values < 0) | (values >= limit))
      if outside.size:
        raise InputError(
          f"{self.name}: {column} must be in [0, {limit}); {outside.size} of {rows} ratings are"
          f" outside (first: row {outside[0]}, {values[outside[0]]})"
        )
    if not np.isfinite(self.rating).all():
      raise InputError(f"{self.name}: rating holds values that are not finite; drop those rows")
    if self.schema.context:
      context_rows = check_table(self.schema.context, self.context, f"{self.name}: context")
      if context_rows != rows:
        raise InputError(f"{self.name}: context has {context_rows} rows for {rows} ratings")

  @property
  def num_users(self) -> int:
    return self.schema.num_users

  @property
  def num_items(self) -> int:
    return self.schema.num_items

  def fingerprint(self) -> str:
    """Returns the SHA-256 of the schema and of every array, as 64 hex digits."""
    digest = hashlib.sha256(self.schema.to_json().encode())
    tables = {"users": self.users, "items": self.items, "context": self.context}
    arrays = {
      f"{side}.{name}": values for side, table in tables.items() for name, values in table.items()
    }
    arrays |= {name: getattr(self, name) for name in ("titles", "user_index", "item_index")}
    arrays["rating"] = self.rating
    for name, values in sorted(arrays.items()):
      # The header keeps arrays apart whose bytes alone would run together.
      digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
      digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def unit_range(name: str, values: np.ndarray) -> Numeric:
  """Returns the numeric feature that reads the smallest of `values` as 0 and the largest as 1.

  Args:
    name: the feature's name.
    values: its raw values, not empty.
  """
  low, high = float(values.min()), float(values.max())
  # One single value has no width to divide by and reads as 0.
  return Numeric(name, offset=low, scale=high - low or 1.0)


def _check_side(features: Sequence[Feature], key: Id, table: FeatureTable, what: str) -> None:
  """Checks one feature table against the schema, its key column and its string types."""
  rows = check_table(features, table, what)
  if rows != len(key.vocabulary):
    raise InputError(f"{what}: {rows} rows for {len(key.vocabulary)} values of {key.name!r}")
  for feature in features:
    if not isinstance(feature, Numeric) and table[feature.name].dtype.kind != "U":
      raise InputError(
        f"{what}: column {feature.name!r} must hold NumPy strings ('<U'), got"
        f" {table[feature.name].dtype}; convert it with astype(str)"
      )
  moved = np.flatnonzero(table[key.name] != np.array(key.vocabulary))
  if moved.size:
    raise InputError(
      f"{what}: row i must hold {key.name!r} number i of the vocabulary; {moved.size} of {rows}"
      f" rows differ (first: row {moved[0]}); order the table like the vocabulary"
    )
