"""Ratings of items by users: the arrays of every ratings data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.data.log import BanditLog
from tf_twostage.data.schema import (
  Feature,
  FeatureTable,
  Id,
  Numeric,
  Schema,
  check_table,
  fingerprint_arrays,
  is_text,
)
from tf_twostage.errors import InputError, require

_NO_REWARD = "no_reward"


@dataclasses.dataclass(frozen=True, eq=False)
class RatingsData:
  """Users, items and the ratings between them; row i of a table is catalogue index i.

  Strings are NumPy unicode or objects; bags are padded with "". `from_pandas` makes all of this
  of tables.

  Attributes:
    name: the data set's name.
    schema: the features of users, items and context.
    users: raw user features by name, [U] each.
    items: raw item features by name, [N] each ([N, max_length] for a bag).
    titles: display names of the items, [N] str.
    user_index: who rated, [R] int32 in [0, U).
    item_index: what was rated, [R] int32 in [0, N).
    rating: the ratings, [R] float32.
    context: raw context features of each rating by name, [R] float64.

  Raises:
    InputError: a table does not fit the schema, an index points outside its table, a length or
      type differs from the above, or there are no ratings.
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
    if self.titles.shape != (self.num_items,) or not is_text(self.titles):
      raise InputError(
        f"{self.name}: titles must be {self.num_items} strings, one per item, got"
        f" {self.titles.dtype} {self.titles.shape}"
      )
    rows = len(self.rating)
    if not rows:
      raise InputError(f"{self.name}: there are no ratings")
    for column, dtype, limit in (
      ("user_index", np.int32, self.num_users),
      ("item_index", np.int32, self.num_items),
      ("rating", np.float32, None),
    ):
      values = getattr(self, column)
      if values.shape != (rows,) or values.dtype != dtype:
        raise InputError(
          f"{self.name}: {column} must be {np.dtype(dtype)} ({rows},), got"
          f" {values.dtype} {values.shape}"
        )
      if limit:
        inside, rule = (values >= 0) & (values < limit), f"must be in [0, {limit})"
        require(inside, f"{self.name}: {column}", rule, "drop those rows", values)
    finite = np.isfinite(self.rating)
    require(finite, f"{self.name}: rating", "must be finite", "drop those rows", self.rating)
    if self.schema.context:
      context_rows = check_table(self.schema.context, self.context, f"{self.name}: context")
      if context_rows != rows:
        raise InputError(f"{self.name}: context has {context_rows} rows for {rows} ratings")

  @classmethod
  def from_pandas(
    cls,
    ratings: pd.DataFrame,
    *,
    user: str,
    item: str,
    rating: str,
    name: str = "ratings",
    **tables: Any,
  ) -> RatingsData:
    """Makes ratings data of DataFrames.

    Args:
      ratings: one row per rating.
      user: column of user ids.
      item: column of item ids.
      rating: column of ratings.
      name: the data set's name.
      tables: `users`, `items`, `user_features`, `item_features`, `context` and `title`, as in
        `BanditLog.from_pandas`.

    Raises:
      InputError: a column is missing, an id is missing from its table or repeated there, or a
        value is invalid.
    """
    if rating not in ratings:
      raise InputError(f"{name}: no column {rating!r}; found {list(map(str, ratings))}")
    # Ratings may be negative and rewards may not, so the log gets a constant in their place.
    frame = ratings.assign(**{_NO_REWARD: 0.0})
    log = BanditLog.from_pandas(frame, user=user, item=item, reward=_NO_REWARD, name=name, **tables)
    return cls(
      name=name,
      schema=log.schema,
      users=dict(log.users),
      items=dict(log.items),
      titles=log.titles,
      user_index=log.rows.user_index,
      item_index=log.rows.action,
      rating=pd.to_numeric(ratings[rating], errors="coerce").to_numpy(np.float32),
      context=dict(log.rows.context),
    )

  @property
  def num_users(self) -> int:
    return self.schema.num_users

  @property
  def num_items(self) -> int:
    return self.schema.num_items

  def fingerprint(self) -> str:
    """Returns the SHA-256 of the schema and of every array, as 64 hex digits."""
    tables = {"users": self.users, "items": self.items, "context": self.context}
    arrays = {f"{side}.{name}": v for side, table in tables.items() for name, v in table.items()}
    arrays |= {name: getattr(self, name) for name in ("titles", "user_index", "item_index")}
    return fingerprint_arrays(self.schema.to_json(), {**arrays, "rating": self.rating})


def _check_side(features: Sequence[Feature], key: Id, table: FeatureTable, what: str) -> None:
  """Checks one feature table against the schema, its key column and its string types."""
  rows = check_table(features, table, what)
  if rows != len(key.vocabulary):
    raise InputError(f"{what}: {rows} rows for {len(key.vocabulary)} values of {key.name!r}")
  for feature in features:
    if not isinstance(feature, Numeric) and not is_text(table[feature.name]):
      raise InputError(
        f"{what}: column {feature.name!r} must hold strings, got"
        f" {table[feature.name].dtype}; convert it with astype(str)"
      )
  in_order, rule = (
    table[key.name] == np.array(key.vocabulary, object),
    "must be in the vocabulary's order",
  )
  remedy = "order the table like the vocabulary"
  require(in_order, f"{what}: column {key.name!r}", rule, remedy, table[key.name])
