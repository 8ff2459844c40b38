"""Ratings of items by users, or orders: the arrays of every such data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.data import assemble, histories
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import FeatureColumn
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import (
  Feature,
  FeatureTable,
  Id,
  ItemSequence,
  Numeric,
  Schema,
  check_table,
  fingerprint_arrays,
  is_text,
)
from tf_twostage.data.sets.layouts import RatingsFiles
from tf_twostage.errors import InputError, require

_RATING = "rating_of_row"  # as a context feature, while files are read
_OF_LOGS = ("slate_id", "policy", "cascade_propensity", "examination", "ranker_score", "split")


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
    rating: the ratings, [R] float32; None: rows are orders or the like, all of them positive.
    context: raw context features of each rating by name, [R] float64.
    time: when each item was rated, [R] float64, or None.
    notes: what a reader should know, such as that rows were left out; sentences.
    complete_users: the last users, this many, rated every item once. They are logged and evaluated,
      and the others fit the logging policy and the ranker.

  Raises:
    InputError: a table does not fit the schema, an index points outside its table, a length or
      type differs from the above, there are no ratings, or a complete user lacks one.
  """

  name: str
  schema: Schema
  users: dict[str, np.ndarray]
  items: dict[str, np.ndarray]
  titles: np.ndarray
  user_index: np.ndarray
  item_index: np.ndarray
  rating: np.ndarray | None
  context: dict[str, np.ndarray]
  time: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  complete_users: int = 0

  def __post_init__(self):
    _check_side(self.schema.user, self.schema.user_id, self.users, f"{self.name}: user features")
    _check_side(self.schema.item, self.schema.item_id, self.items, f"{self.name}: item features")
    if self.titles.shape != (self.num_items,) or not is_text(self.titles):
      raise InputError(
        f"{self.name}: titles must be {self.num_items} strings, one per item, got"
        f" {self.titles.dtype} {self.titles.shape}"
      )
    rows = len(self)
    if not rows:
      raise InputError(f"{self.name}: there are no ratings")
    for column, dtype, limit in (
      ("user_index", np.int32, self.num_users),
      ("item_index", np.int32, self.num_items),
      ("rating", np.float32, None),
      ("time", np.float64, None),
    ):
      values = getattr(self, column)
      if values is None:
        continue
      if values.shape != (rows,) or values.dtype != dtype:
        raise InputError(
          f"{self.name}: {column} must be {np.dtype(dtype)} ({rows},), got"
          f" {values.dtype} {values.shape}"
        )
      if limit:
        inside, rule = (values >= 0) & (values < limit), f"must be in [0, {limit})"
        require(inside, f"{self.name}: {column}", rule, "drop those rows", values)
      finite = np.isfinite(values)
      require(finite, f"{self.name}: {column}", "must be finite", "drop those rows", values)
    if self.schema.context:
      context_rows = check_table(self.schema.context, self.context, f"{self.name}: context")
      if context_rows != rows:
        raise InputError(f"{self.name}: context has {context_rows} rows for {rows} ratings")
    complete = self.user_index >= self.num_users - self.complete_users
    cells = self.num_items * self.user_index[complete].astype(np.int64) + self.item_index[complete]
    wanted = self.complete_users * self.num_items
    if not len(cells) == len(np.unique(cells)) == wanted:
      raise InputError(
        f"{self.name}: the last {self.complete_users} users must rate every item once, {wanted}"
        f" ratings, but have {len(cells)}, of {len(np.unique(cells))} pairs"
      )

  @classmethod
  def from_pandas(
    cls,
    ratings: pd.DataFrame,
    *,
    user: str,
    item: str,
    rating: str | None,
    name: str = "ratings",
    **tables: Any,
  ) -> RatingsData:
    """Makes ratings data of DataFrames.

    Args:
      ratings: one row per rating.
      user: column of user ids.
      item: column of item ids.
      rating: column of ratings. None: rows are orders or the like, all of them positive.
      name: the data set's name.
      tables: `time`, `users`, `items`, `user_features`, `item_features`, `context` and `title`, as
        in `BanditLog.from_pandas`.

    Raises:
      InputError: a column is missing, an id is missing from its table or repeated there, or a
        value is invalid.
    """
    if rating is not None and rating not in ratings:
      raise InputError(f"{name}: no column {rating!r}; found {list(map(str, ratings))}")
    log = BanditLog.from_pandas(ratings, user=user, item=item, reward=None, name=name, **tables)
    if rating is None:
      return cls._of(log, None)
    return cls._of(log, pd.to_numeric(ratings[rating], errors="coerce").to_numpy(np.float32))

  @classmethod
  def from_files(cls, files: RatingsFiles, *, on_bad_rows: str = "fail") -> RatingsData:
    """Reads ratings data from files.

    Args:
      files: see `layouts.find`.
      on_bad_rows: "fail", or "skip" to leave bad rows out and note it.

    Raises:
      InputError: files cannot be read, columns are missing, or nothing is left.
      BadRowsError: rows are bad; names each kind of fault, its first row and the remedy.
    """
    schema, place = files.schema, files.ratings.place
    roles = [role for role in _OF_LOGS if getattr(schema, role) is not None]
    if schema.propensity in files.ratings.format.column_names(files.ratings.paths[0]):
      roles.append("propensity")
    if roles:
      raise InputError(
        f"{place}: {', '.join(roles)}: rows with these are a log of what was shown, not ratings;"
        " leave them out of the schema, or read the file as a log, without dataset ratings"
      )
    if schema.sequences:
      raise InputError(
        f"{place}: {schema.sequences[0].name!r}: the setting history makes a sequence of ratings;"
        " leave it out of the schema"
      )
    if len(schema.rewards) > 1:
      raise InputError(f"{place}: reward: name one column of ratings; null means orders")
    # Ratings may be negative and rewards may not.
    rating = tuple(FeatureColumn(_RATING, "numeric", column) for column in schema.rewards)
    schema = dataclasses.replace(
      schema,
      reward=None,
      propensity=None,
      position=None,
      context_features=schema.context_features + rating,
    )
    read = assemble.read(files.ratings, files.items, files.users, schema, on_bad_rows=on_bad_rows)
    log = BanditLog.from_raw(read)
    numbers = log.rows.context.get(_RATING)
    return cls._of(log, None if numbers is None else numbers.astype(np.float32))

  @classmethod
  def _of(cls, log: BanditLog, rating: np.ndarray | None) -> RatingsData:
    context = {name: values for name, values in log.rows.context.items() if name != _RATING}
    features = tuple(feature for feature in log.schema.context if feature.name in context)
    return cls(
      name=log.name,
      schema=dataclasses.replace(log.schema, context=features),
      users=dict(log.users),
      items=dict(log.items),
      titles=log.titles,
      user_index=log.rows.user_index,
      item_index=log.rows.action,
      rating=rating,
      context=context,
      time=log.time,
      notes=log.notes,
    )

  def log(self, positive_above: float = 3.0, *, history: str | None = None) -> BanditLog:
    """A log of these rows, rewarded with 1 where they are positive, without impressions.

    Args:
      positive_above: ratings above this are positive; orders all are.
      history: name of a sequence feature: the items of the user's earlier positive rows.

    Raises:
      InputError: a history is wanted of rows without times.
    """
    positive = np.ones(len(self)) if self.rating is None else self.rating > positive_above
    reward = positive.astype(np.float32)
    schema, past = self.schema, {}
    if history is not None:
      if self.time is None:
        raise InputError(f"{self.name}: a history needs the time of each row; name its column")
      sequence = ItemSequence(history, schema.item_id.vocabulary)
      schema = dataclasses.replace(schema, user=(*schema.user, sequence))
      rows = self.user_index, self.item_index, self.time, reward > 0
      past = {history: histories.earlier(*rows, num_users=self.num_users)}
    return BanditLog(
      name=self.name,
      schema=schema,
      users=self.users,
      items=self.items,
      titles=self.titles,
      rows=LogRows(self.user_index, self.item_index, None, reward, self.context, histories=past),
      time=self.time,
      notes=self.notes,
      impressions=False,
    )

  def __len__(self) -> int:
    return len(self.user_index)

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
    names = ("titles", "user_index", "item_index", "rating", "time")
    arrays |= {name: value for name in names if (value := getattr(self, name)) is not None}
    return fingerprint_arrays(self.schema.to_json(), arrays)


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
