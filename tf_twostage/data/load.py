"""A log of one's own, in files, under a schema of columns -> the arrays that training takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data import feature_tables, files
from tf_twostage.data.feature_tables import RawTable, strings
from tf_twostage.data.files import BadRows, Chunk, IdSet, LogFiles
from tf_twostage.data.files.vocabulary import Vocabulary, natural_order
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema, load_schema
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id, Schema, unit_range
from tf_twostage.errors import InputError

_BESIDE = ("propensity", "reward", "position", "time", "ranker_score")


def load(
  log: str | os.PathLike | Sequence[str | os.PathLike] | LogFiles,
  items: str | os.PathLike | LogFiles | None,
  schema: str | os.PathLike | LogSchema,
  users: str | os.PathLike | LogFiles | None = None,
  *,
  on_bad_rows: str = "fail",
  bad_rows: BadRows | None = None,
) -> BanditLog:
  """Reads, checks and assembles a log with its users and items.

  Items of the items file that were never shown belong to the catalogue; items shown that are not
  in it are bad rows. Ids of a file keep its order, ids of the log are sorted.

  Args:
    log: file, directory, pattern, or several of them; see `files.locate`.
    items: file with a row for each item; None: the catalogue is what was logged.
    schema: a `LogSchema`, its file, or the name of a preset.
    users: file with a row for each user; None: user features are columns of the log.
    on_bad_rows: "fail", or "skip" to go on without them.
    bad_rows: takes note of them.

  Raises:
    InputError: files cannot be read, columns are missing, or nothing is left.
    BadRowsError: rows are bad and shall not be skipped, or all are; names each kind of fault.
  """
  source = Source(log, items, schema, users, on_bad_rows=on_bad_rows, bad_rows=bad_rows)
  beside: dict[str, list[np.ndarray]] = {}
  for part in source.parts():
    for name, values in part.items():
      beside.setdefault(name, []).append(values)
  return source.data({name: np.concatenate(values) for name, values in beside.items()})


class Source:
  """A log that is read part by part, while its users and items are met; see `load`.

  Until all parts have passed, users and items go by numbers in the order in which they came.
  """

  def __init__(
    self,
    log: str | os.PathLike | Sequence[str | os.PathLike] | LogFiles,
    items: str | os.PathLike | LogFiles | None,
    schema: str | os.PathLike | LogSchema,
    users: str | os.PathLike | LogFiles | None = None,
    *,
    on_bad_rows: str = "fail",
    bad_rows: BadRows | None = None,
  ):
    self.schema = schema = load_schema(schema)
    self._bad_rows = BadRows() if bad_rows is None else bad_rows
    self._on_bad_rows = on_bad_rows
    self._has_users, self._has_items = users is not None, items is not None
    if users is not None and schema.user_id is None:
      raise InputError(
        f"{users}: a users file needs ids to look up, but the schema says `user_id: null`; name the"
        " column of the user ids, or leave the file out"
      )
    if items is None and (schema.item_features or schema.title):
      raise InputError(
        "the schema has item features or a title, which stand in an items file; name the file, or"
        " leave them out"
      )
    self._catalogue = _Catalogue(schema, items)
    self._people = (
      _LoggedUsers(schema, self._bad_rows) if users is None else _ListedUsers(schema, users)
    )
    self._files = files.locate(log) if not isinstance(log, LogFiles) else log
    self._ranks: dict[str, np.ndarray] = {}

  def parts(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields columns of good rows, [m] each: `user_index` and `action` as numbers of their own.

    Raises:
      InputError: as `load`, after the last part.
    """
    known = self._catalogue.known | self._people.known
    context = [feature.name for feature in self.schema.context_features]
    for part in files.read(
      self._files, self.schema, self._bad_rows, user_features=not self._has_users, known=known
    ):
      user_index, consistent = self._people.index(part)
      columns = {"user_index": user_index, "action": self._catalogue.index(part)}
      names = [name for name in (*_BESIDE, *context) if name in part.table.column_names]
      columns |= {name: part.table[name].to_numpy() for name in names}
      if self.schema.split:
        columns["split_label"] = strings(part.table["split"].combine_chunks())
      yield {name: values[consistent] for name, values in columns.items()}
    self._bad_rows.settle(self._on_bad_rows)

  def data(
    self, columns: Mapping[str, np.ndarray], chosen: np.ndarray | slice = slice(None)
  ) -> BanditLog:
    """Users and items with some rows of the log, after the last part.

    Args:
      columns: those of all parts, joined; [n] each.
      chosen: the rows, a mask [n], indices, or a slice.
    """
    schema = self.schema
    item_table, self._ranks["action"] = self._catalogue.table()
    user_table, self._ranks["user_index"] = self._people.table()
    item_features, item_columns = feature_tables.build(schema.item_features, item_table.columns)
    user_features, user_columns = feature_tables.build(schema.user_features, user_table.columns)
    user_ids, item_ids = strings(user_table.ids), strings(item_table.ids)
    beside: dict[str, Any] = {
      name: columns[name][chosen]
      for name in ("time", "ranker_score", "split_label")
      if name in columns
    }
    return BanditLog(
      name=self._files.place,
      schema=Schema(
        user=(
          # Combinations of features have no identity beyond them.
          Id("user_id", tuple(user_ids.tolist()), embedded=schema.user_id is not None),
          *user_features,
        ),
        item=(Id("item_id", tuple(item_ids.tolist())), *item_features),
        context=tuple(unit_range(f.name, columns[f.name]) for f in schema.context_features),
      ),
      users={"user_id": user_ids, **user_columns},
      items={"item_id": item_ids, **item_columns},
      titles=item_table.columns.get("title", item_ids),
      rows=self.log(columns, chosen),
      notes=tuple(self._notes(len(item_ids))),
      **beside,
    )

  def users(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The user of every row, [n] int32, once `data` has been made."""
    return self._ranks["user_index"][columns["user_index"]]

  def log(self, columns: Mapping[str, np.ndarray], chosen: np.ndarray | slice) -> LogRows:
    """Some rows of the log, once `data` has been made; arguments are as there."""
    return LogRows(
      **{name: rank[columns[name][chosen]] for name, rank in self._ranks.items()},
      propensity=columns["propensity"][chosen] if "propensity" in columns else None,
      reward=columns["reward"][chosen],
      context={f.name: columns[f.name][chosen] for f in self.schema.context_features},
      position=columns["position"][chosen] if "position" in columns else None,
    )

  def _notes(self, num_items: int) -> Iterator[str]:
    if self._bad_rows.bad:
      yield f"{self._bad_rows.bad} of {self._bad_rows.rows} rows are bad and were left out"
    if not self._has_items:
      yield f"no items file: the catalogue is the {num_items} items that were logged"
    if not self.schema.has_propensities:
      yield "the log has no propensities; they have to be estimated"


class _Catalogue:
  """The items: those of a file, or those that are met."""

  def __init__(self, schema: LogSchema, path: str | os.PathLike | LogFiles | None):
    self._met = Vocabulary()
    self._listed = None
    self.known: dict[str, IdSet] = {}
    if path is not None:
      self._listed = feature_tables.read(
        path, str(schema.item_key), schema.item_features, schema.title
      )
      self.known["item_id"] = _listed(self._listed.ids, "item", path)

  def index(self, part: Chunk) -> np.ndarray:
    ids = part.table["item_id"]
    return self._met.encode(ids) if self._listed is None else _place(ids, self._listed.ids)

  def table(self) -> tuple[RawTable, np.ndarray]:
    """The items, and where each index stands among them."""
    if self._listed is not None:
      return self._listed, np.arange(len(self._listed.ids))
    return _sorted(self._met, {})


class _ListedUsers:
  """The users of a file."""

  def __init__(self, schema: LogSchema, path: str | os.PathLike | LogFiles):
    self._listed = feature_tables.read(path, str(schema.user_key), schema.user_features)
    self.known = {"user_id": _listed(self._listed.ids, "user", path)}

  def index(self, part: Chunk) -> tuple[np.ndarray, np.ndarray]:
    index = _place(part.table["user_id"], self._listed.ids)
    return index, np.ones(len(index), bool)

  def table(self) -> tuple[RawTable, np.ndarray]:
    return self._listed, np.arange(len(self._listed.ids))


class _LoggedUsers:
  """The users that are met, with the features that their rows have."""

  def __init__(self, schema: LogSchema, bad_rows: BadRows):
    self._schema = schema
    self._bad_rows = bad_rows
    self._met = Vocabulary()
    self._features = {
      feature.name: _FirstValues(feature.kind == "numeric") for feature in schema.user_features
    }
    self.known: dict[str, IdSet] = {}

  def index(self, part: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """The user of every row, [m], and whether its features are those of the user's other rows."""
    if self._schema.user_id is None:
      ids = _combinations([part.table[name] for name in self._features])
    else:
      ids = part.table["user_id"]
    index = self._met.encode(ids)
    consistent = np.ones(len(index), bool)
    for feature in self._schema.user_features:
      same = self._features[feature.name].agree(index, len(self._met), part.table[feature.name])
      self._bad_rows.require(
        same,
        part,
        feature.name,
        f"must be the same in all rows of a user ({self._schema.user_id!r})",
        "mend these rows, or give each user's features once, in a users file",
      )
      consistent &= same
    self._bad_rows.bad += int((~consistent).sum())
    return index, consistent

  def table(self) -> tuple[RawTable, np.ndarray]:
    return _sorted(self._met, {name: first.values() for name, first in self._features.items()})


class _FirstValues:
  """Of every user, the value of a feature in the first row."""

  def __init__(self, numeric: bool):
    self._vocabulary = None if numeric else Vocabulary()
    self._first = np.empty(0, np.float64)  # NaN: the user has not been met

  def agree(self, users: np.ndarray, num_users: int, column: pa.ChunkedArray) -> np.ndarray:
    """Whether each row has the first value of its user, [m] bool."""
    values = column.to_numpy() if self._vocabulary is None else self._vocabulary.encode(column)
    unmet = np.full(num_users - len(self._first), np.nan)
    self._first = np.concatenate([self._first, unmet])
    new = np.flatnonzero(np.isnan(self._first[users]))[::-1]
    self._first[users[new]] = values[new]  # of several rows of a user the last assigned stays
    return self._first[users] == values

  def values(self) -> np.ndarray:
    if self._vocabulary is None:
      return self._first
    return strings(self._vocabulary.values)[self._first.astype(int)]


def _listed(ids: pa.Array, side: str, path: object) -> IdSet:
  path = getattr(path, "place", path)
  return IdSet(
    ids,
    f"must name a known {side}: unknown {side}, not in {path}",
    f"add them to {path} or drop these rows",
  )


def _place(ids: pa.ChunkedArray, listed: pa.Array) -> np.ndarray:
  return pc.index_in(ids, value_set=listed).to_numpy().astype(np.int32)


def _sorted(met: Vocabulary, columns: Mapping[str, np.ndarray]) -> tuple[RawTable, np.ndarray]:
  """A table in natural order, and where each code stands in it."""
  values = met.values
  order = natural_order(values)
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order), dtype=np.int32)
  ids = pa.array(values, pa.string()).take(pa.array(order))
  return RawTable(ids, {name: column[order] for name, column in columns.items()}), rank


def _combinations(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
  """Values side by side as one string, such that different values make different strings."""
  escaped = []
  for column in columns:
    values = pc.replace_substring(pc.cast(column, pa.string()), "\\", "\\\\")
    escaped.append(pc.replace_substring(values, "|", "\\|"))
  return pc.binary_join_element_wise(*escaped, "|")
