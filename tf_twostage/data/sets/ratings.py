"""Ratings of items by users: the arrays of every ratings data set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tf_twostage.data import feature_tables
from tf_twostage.data.files.vocabulary import natural_order
from tf_twostage.data.log_schema import FeatureColumn
from tf_twostage.data.schema import (
  Feature,
  FeatureTable,
  Id,
  Numeric,
  Schema,
  check_table,
  unit_range,
)
from tf_twostage.errors import InputError, require


@dataclasses.dataclass(frozen=True, eq=False)
class RatingsData:
  """Users, items and the ratings between them; row i of a table is catalogue index i.

  Strings are NumPy unicode arrays; bags are padded with "". `from_pandas` makes all of this of
  tables.

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
    if self.titles.shape != (self.num_items,) or self.titles.dtype.kind != "U":
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
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    user_features: Mapping[str, str] | None = None,
    item_features: Mapping[str, str] | None = None,
    context: Sequence[str] = (),
    title: str | None = None,
    name: str = "ratings",
  ) -> RatingsData:
    """Makes ratings data of tables.

    Args:
      ratings: one row per rating.
      user: the column of user ids, in `ratings` and in `users`.
      item: the column of item ids, in `ratings` and in `items`.
      rating: the column of ratings.
      users: one row per user. None: the users of `ratings`, by id.
      items: one row per item. None: the items of `ratings`, by id.
      user_features: columns of `users` that models read, each "categorical", "numeric" or "bag"
        (values separated by "|").
      item_features: columns of `items`, likewise.
      context: numeric columns of `ratings` that models read, such as the time.
      title: the column of `items` with display names. None: the ids.
      name: the data set's name.

    Raises:
      InputError: a column is missing, a user or item is missing from its table or stands there
        twice, or a value is invalid.
    """
    _require_columns(ratings, (user, item, rating, *context), f"{name}: ratings")
    user_side, user_table, user_index = _side(ratings[user], users, user_features, f"{name}: users")
    item_side, item_table, item_index = _side(ratings[item], items, item_features, f"{name}: items")
    if items is None or title is None:
      titles = item_table[item]
    else:
      _require_columns(items, (title,), f"{name}: items")
      titles = _text(items[title])
    numbers = {column: ratings[column].to_numpy(np.float64) for column in context}
    return cls(
      name=name,
      schema=Schema(
        user=user_side,
        item=item_side,
        context=tuple(unit_range(column, values) for column, values in numbers.items()),
      ),
      users=user_table,
      items=item_table,
      titles=titles,
      user_index=user_index,
      item_index=item_index,
      rating=ratings[rating].to_numpy(np.float32),
      context=numbers,
    )

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
  in_order, rule = table[key.name] == np.array(key.vocabulary), "must be in the vocabulary's order"
  remedy = "order the table like the vocabulary"
  require(in_order, f"{what}: column {key.name!r}", rule, remedy, table[key.name])


def _side(
  ids: pd.Series, table: pd.DataFrame | None, features: Mapping[str, str] | None, what: str
) -> tuple[tuple[Feature, ...], dict[str, np.ndarray], np.ndarray]:
  """The features, the raw table and the row of each of `ids` [R] in it, for users or items."""
  key, kinds = str(ids.name), features or {}
  if table is None:
    distinct = _text(ids.dropna().drop_duplicates())
    table = pd.DataFrame({key: distinct[natural_order(distinct.tolist())]})
  _require_columns(table, (key, *kinds), what)
  known = _text(table[key])
  feature = Id(key, tuple(known.tolist()))  # refuses repeated ids
  index = np.where(ids.isna(), -1, pd.Index(known).get_indexer(_text(ids)))
  remedy = "add it to the table or drop these rows"
  require(index >= 0, f"{what}: the id", "must be in the table", remedy, ids.to_numpy())
  built, raw = feature_tables.build(
    [FeatureColumn(name, kind) for name, kind in kinds.items()],
    {
      name: table[name].to_numpy(np.float64) if kind == "numeric" else _text(table[name].fillna(""))
      for name, kind in kinds.items()
    },
  )
  return (feature, *built), {key: known, **raw}, index.astype(np.int32)


def _require_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
  missing = [column for column in columns if column not in table]
  if missing:
    raise InputError(f"{what}: missing column(s) {missing}; found {list(map(str, table))}")


def _text(values: pd.Series) -> np.ndarray:
  return np.array(values.astype(str).tolist(), dtype=str)
