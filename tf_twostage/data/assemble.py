"""Reads a log part by part, through one set of checks, while it collects its users and items."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data import feature_tables, histories
from tf_twostage.data.catalogues import Catalogues
from tf_twostage.data.feature_tables import RawTable, natural_order, strings
from tf_twostage.data.files import reader
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.columns import (
  LIST_SEPARATOR,
  IdSet,
  are_dates,
  as_text,
  combinations,
)
from tf_twostage.data.files.locate import LogFiles, locate
from tf_twostage.data.histories import Histories
from tf_twostage.data.kinds import separates
from tf_twostage.data.log_schema import (
  AVAILABLE,
  FeatureColumn,
  LogSchema,
  load_schema,
  propensity_of,
)
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id, ItemSequence, Schema, TimedSequence, events_of, unit_range
from tf_twostage.errors import InputError, require

_SEQUENCES = {"sequence": ItemSequence, "timed_sequence": TimedSequence}
_MOST_KINDS = 1000  # of events; more are ids or times
File = str | os.PathLike | LogFiles
Columns = Mapping[str, np.ndarray]
_UNKNOWN_SHARE = 0.9  # of the items of lists; above it, the separator or the ids are wrong
_NUMBERS = (*reader.NUMBERS, "time")


@dataclasses.dataclass(frozen=True, eq=False)
class RawLog:
  """A log that was read: its users and items, and the columns of its good rows."""

  # what a `BanditLog` has besides its rows: name, schema, tables, titles, notes
  shared: Mapping[str, Any]
  columns: Columns  # [n] each; users and items are numbered in the order in which they were met
  user_rank: np.ndarray  # number of a user -> its row in the table of users
  item_rank: np.ndarray  # number of an item -> its row in the table of items
  catalogues: Catalogues | None = None
  histories: Mapping[str, Histories] = dataclasses.field(default_factory=dict)  # of all rows

  def user_index(self) -> np.ndarray:
    """The user of every row, [n]."""
    return self.user_rank[self.columns["user_index"]]

  def rows(self, chosen: np.ndarray | slice = slice(None)) -> LogRows:
    """Some of the rows: a mask [n], indices, or a slice."""
    part = {name: values[chosen] for name, values in self.columns.items()}
    return LogRows(
      user_index=self.user_rank[part["user_index"]],
      action=self.item_rank[part["action"]],
      propensity=part.get("propensity"),
      reward=part["reward"],
      context={feature.name: part[feature.name] for feature in self.shared["schema"].context},
      position=part.get("position"),
      catalogue=part.get("catalogue"),
      catalogues=self.catalogues,
      histories={name: history.select(chosen) for name, history in self.histories.items()},
    )


def in_memory(parts: Iterator[dict[str, np.ndarray]]) -> Columns:
  """The columns of all parts."""
  columns: dict[str, list[np.ndarray]] = {}
  for part in parts:
    for name, values in part.items():
      columns.setdefault(name, []).append(values)
  return {name: np.concatenate(values) for name, values in columns.items()}


def read(
  log: File | Sequence[str | os.PathLike],
  items: File | None,
  users: File | None,
  schema: str | os.PathLike | LogSchema,
  *,
  on_bad_rows: str = "fail",
  bad_rows: BadRows | None = None,
  collect: Callable[[Iterator[dict[str, np.ndarray]]], Columns] = in_memory,
) -> RawLog:
  """Reads and checks a log with its users and items.

  Ids of a table keep its order; ids of the log are sorted. Items of the table that were never shown
  belong to the catalogue; items shown that are not in it are bad rows.
  """
  schema = load_schema(schema)
  faults = BadRows() if bad_rows is None else bad_rows
  if users is not None and schema.user_id is None:
    raise InputError(
      f"{_place(users)}: a users file needs ids to look up, but the schema says `user_id: null`;"
      " name the column of the user ids, or leave the file out"
    )
  if items is None and (schema.item_features or schema.title or schema.intervals):
    raise InputError(
      "the schema has item features, a title or times at which items come and go, which are columns"
      " of an items file; name the file, or leave them out"
    )
  of_table = [feature for feature in schema.user_features if feature not in schema.sequences]
  vectors = [feature.name for feature in of_table if feature.kind == "embedding"]
  if users is None and vectors:
    raise InputError(
      f"user_features: {vectors[0]!r} is an embedding, a column of a users file with one vector a"
      " user; name the file, or leave the feature out"
    )
  catalogue = _Ids(
    "item", items, schema.item_key, schema.item_features, schema.title, schema.intervals
  )
  people = _Ids("user", users, schema.user_key, of_table)
  of_users = {f.name: _FirstValues(f) for f in of_table} if users is None else {}
  found = locate(log)
  if items is not None and schema.intervals:
    _check_clocks(found, locate(items), schema)
  context = [feature.name for feature in schema.context_features]
  policies, slates, lists = _Vocabulary(), _Vocabulary(), _Vocabulary()
  policies.encode(pa.array(schema.policies, pa.string()))
  kinds = {events_of(f.name): _Vocabulary() for f in schema.sequences if f.column == schema.item_id}

  def parts() -> Iterator[dict[str, np.ndarray]]:
    known = catalogue.known | people.known
    for part in reader.read(found, schema, faults, user_features=users is None, known=known):
      table = part.table
      user = people.encode(
        table["user_id"] if schema.user_id else combinations([table[name] for name in of_users])
      )
      good = np.ones(len(user), bool)
      for name, first in of_users.items():
        same = first.agree(user, len(people.met), table[name])
        faults.require(
          same,
          part,
          name,
          f"must be the same in all rows of a user ({schema.user_id!r})",
          "mend these rows, or give each user's features once, in a users file",
        )
        good &= same
      action = catalogue.encode(table["item_id"])
      for name, valid, rule, remedy in _shown(schema, catalogue, table, action):
        faults.require(valid, part, name, rule, remedy)
        good &= valid
      faults.bad += int((~good).sum())
      columns = {"user_index": user, "action": action}
      if schema.candidates:
        columns["candidates"] = lists.encode(table["candidates"])
      numbers = [name for name in (*_NUMBERS, *context) if name in table.column_names]
      columns |= {name: table[name].to_numpy() for name in numbers}
      if schema.policy:
        columns["policy"] = policies.encode(table["policy"])
      if schema.slate_id:
        columns["slate"] = slates.encode(table["slate_id"])
      if schema.policies:
        several = [table[propensity_of(policy)].to_numpy() for policy in schema.policies]
        columns["policy_propensities"] = np.stack(several, axis=1)
      for feature in schema.sequences:
        for name in (feature.name, events_of(feature.name)):
          if name in table.column_names:
            cells = table[name].combine_chunks()
            of_rows = kinds.get(name)
            columns[name] = (
              strings(cells) if of_rows is None else of_rows.encode(pc.utf8_trim_whitespace(cells))
            )
      if schema.split:
        columns["split_label"] = strings(table["split"].combine_chunks())
      yield {name: values[good] for name, values in columns.items()}

  columns = collect(parts())
  faults.settle(on_bad_rows)
  if schema.policies and (idle := np.setdiff1d(np.arange(len(policies)), columns["policy"])).size:
    raise InputError(
      f"{found.place}: no row of policy {schema.policies[idle[0]]!r}, whose propensities are named;"
      f" leave it out, or write its name as in column {schema.policy!r}"
    )
  distinct = [[*dict.fromkeys(cell.split(LIST_SEPARATOR))] for cell in lists]
  listed = [catalogue.encode(pa.chunked_array([ids])) for ids in distinct]
  item_table, item_rank = catalogue.table({})
  user_table, user_rank = people.table({name: f.values() for name, f in of_users.items()})
  item_ids, user_ids = strings(item_table.ids), strings(user_table.ids)
  item_features, item_columns = feature_tables.build(schema.item_features, item_table.columns)
  user_features, user_columns = feature_tables.build(of_table, user_table.columns)
  notes = []
  if faults.bad:
    notes.append(f"{faults.bad} of {faults.rows} rows are bad and were left out")
  if items is None:
    notes.append(f"no items file: the catalogue is the {len(item_ids)} items that were logged")
  if schema.propensity is None and schema.reward is not None:
    notes.append("the log has no propensities; they have to be estimated")
  notes += [
    *_unlikely_bags(schema.item_features, item_table),
    *_unlikely_bags(of_table, user_table),
  ]
  for feature in schema.sequences:
    if feature.name not in columns:
      what = "events of the user" if feature.events else "items that the user was rewarded for"
      notes.append(f"{feature.name}: the {what} before the row, in any split")
  pasts = {
    feature.name: _history(
      feature,
      columns,
      user_rank[columns["user_index"]],
      item_rank[columns["action"]],
      item_ids.tolist(),
      [*kinds.get(events_of(feature.name), ())],
      num_users=len(user_ids),
    )
    for feature in schema.sequences
  }
  for feature in schema.sequences:
    if feature.name in columns:
      notes += _unknown_items(found.place, feature, columns[feature.name], pasts[feature.name])
    _check_kinds(found.place, feature, pasts[feature.name].kinds)
  # Combinations of features have no identity beyond them.
  user_id = Id("user_id", tuple(user_ids.tolist()), embedded=schema.user_id is not None)
  schema_of_features = Schema(
    user=(
      user_id,
      *user_features,
      *(
        _SEQUENCES[f.kind](f.name, tuple(item_ids.tolist()), kinds=pasts[f.name].kinds)
        for f in schema.sequences
      ),
    ),
    item=(Id("item_id", tuple(item_ids.tolist())), *item_features),
    context=tuple(unit_range(name, columns[name]) for name in context),
  )
  shared = {
    "name": found.place,
    "schema": schema_of_features,
    "users": {"user_id": user_ids, **user_columns},
    "items": {"item_id": item_ids, **item_columns},
    "titles": item_table.columns.get("title", item_ids),
    "notes": tuple(notes),
    "items_listed": items is not None,
    "impressions": schema.reward is not None or schema.propensity is not None,
    "policies": tuple(policies),
  }
  catalogues = None
  if schema.intervals or schema.candidates:
    time = columns.get("time", np.zeros(len(columns["action"])))
    lists_of_items = [item_rank[items] for items in listed]
    catalogues, number = Catalogues.of_rows(
      _interval(item_table), time, columns.get("candidates"), lists_of_items
    )
    columns = {**columns, "catalogue": number}
  return RawLog(shared, columns, user_rank, item_rank, catalogues, pasts)


def _check_clocks(log: LogFiles, items: LogFiles, schema: LogSchema) -> None:
  """Raises InputError if the log has dates, and the times at which items come or go are numbers."""
  logged, clock = next(_clock(log, "time", str(schema.time)), (None, None))
  for name, column in schema.intervals.items():
    given, kind = next(_clock(items, name, column), (None, clock))
    if clock and kind != clock:
      raise InputError(
        f"{items.place}: column {column!r} holds {kind} such as {given!r}, but the log's"
        f" {schema.time!r} holds {clock} such as {logged!r}; write both as dates, or"
        " both as numbers"
      )


def _clock(files: LogFiles, name: str, column: str) -> Iterator[tuple[str, str]]:
  """For each part of a file that has times the first of them, and whether they are dates."""
  for chunk in reader.chunks(files, {name: column}):
    given = chunk.table[name].drop_null()
    given = given.filter(pc.not_equal(pc.utf8_trim_whitespace(as_text(given)[0]), ""))
    if len(given):
      yield as_text(given[:1])[0][0].as_py(), "dates" if are_dates(given) else "numbers"


def _unknown_items(
  place: str, feature: FeatureColumn, cells: np.ndarray, history: Histories
) -> list[str]:
  """A note on the items of logged lists that are not in the catalogue, if there are any.

  Raises:
    InputError: there is no item in the lists, or nearly none is known.
  """
  items = history.codes[:-1]
  where = f"{place}: column {feature.column!r} of the sequence {feature.name!r}"
  if not len(items):
    raise InputError(f"{where} has no item in any row; leave the sequence out")
  unknown = np.flatnonzero(items == histories.UNKNOWN)
  if not len(unknown):
    return []
  cell = cells[np.searchsorted(history.end, unknown[0], side="right")]
  example = repr(cell.replace(LIST_SEPARATOR, "|")[:80])
  share = len(unknown) / len(items)
  if share > _UNKNOWN_SHARE:
    raise InputError(
      f"{where}: {len(unknown)} of {len(items)} items are not in the catalogue (first in"
      f" {example}); write ids as in the column of items"
      + (
        ""
        if feature.separator == LIST_SEPARATOR
        else f", separated by {feature.separator!r}, or name another `separator` in the schema"
      )
    )
  return [
    f"{feature.name}: {share:.2%} of its items are not in the catalogue (first in {example}) and"
    " are read as one unknown item"
  ]


def _shown(
  schema: LogSchema, catalogue: _Ids, table: pa.Table, action: np.ndarray
) -> Iterator[tuple[str, np.ndarray, str, str]]:
  """Checks that rows could show their items: column, valid rows [k], rule and remedy."""
  if schema.intervals:
    (start, end), time = catalogue.interval[action].T, table["time"].to_numpy()
    valid = (start <= time) & (time < end)
    rule = "must be a time at which the row's item was available"
    yield "time", valid, rule, "mend the times of the items file, or drop these rows"
  if schema.candidates:
    cells = pc.split_pattern(table["candidates"].combine_chunks(), LIST_SEPARATOR)
    row, ids = pc.list_parent_indices(cells).to_numpy(), cells.flatten()
    itself = pc.equal(ids, table["item_id"].combine_chunks().take(pa.array(row)))
    chosen = np.bincount(row, itself.to_numpy(zero_copy_only=False), len(table)) > 0
    rule = 'must list the row\'s item among the candidates, separated by "|"'
    yield "candidates", chosen, rule, "list all items that could be shown, or drop these rows"
    if known := catalogue.known.get("item_id"):
      is_known = pc.is_in(ids, value_set=known.ids).to_numpy(zero_copy_only=False)
      valid = np.bincount(row, ~is_known, len(table)) == 0
      rule = known.text.replace(
        "must name a known item:", 'must list known items, separated by "|":'
      )
      yield "candidates", valid | ~chosen, rule, known.remedy


def _interval(table: RawTable) -> np.ndarray:
  """When there are the items of a table, [N, 2]; see `Catalogues`."""
  always = np.tile([-np.inf, np.inf], (len(table.ids), 1))
  ends = [table.columns.get(name, always[:, i]) for i, name in enumerate(AVAILABLE)]
  return np.stack(ends, axis=1)


def _history(
  feature: FeatureColumn,
  columns: Columns,
  user: np.ndarray,
  item: np.ndarray,
  ids: Sequence[str],
  met: Sequence[str],
  *,
  num_users: int,
) -> Histories:
  """What users did before each row: as it was logged, or made of the rows.

  `met` are the kinds of events by their code in the column of rows, "" for no event.
  """
  time, events = columns.get("time"), columns.get(events_of(feature.name))
  if feature.name in columns:
    cells = columns[feature.name]
    return histories.listed(
      cells, feature.separator, ids, user, time, num_users=num_users, events=events
    )
  assert time is not None  # the schema needs it
  counts, kinds = columns["reward"] > 0, ()
  if events is not None:
    found = {met[code] for code in np.unique(events)}
    kinds = tuple(sorted(found - {""}))
    events = pd.Index(kinds).get_indexer(pd.Index(met))[events]
    counts = events >= 0
  return histories.earlier(
    user,
    item,
    time,
    counts,
    num_users=num_users,
    slate=columns.get("slate"),
    timed=feature.kind == "timed_sequence",
    events=events,
    kinds=kinds,
  )


def _unlikely_bags(features: Sequence[FeatureColumn], table: RawTable) -> Iterator[str]:
  """Notes on bags whose cells are separated by something else."""
  for feature in features:
    if feature.kind == "bag" and feature.separator != LIST_SEPARATOR:
      cells = pd.Series(table.columns[feature.name])
      other = separates(cells)
      if other and not cells.str.contains(feature.separator, regex=False).any():
        yield (
          f"{feature.name}: no cell of this bag has the separator {feature.separator!r}, but many"
          f" have {other!r}; write it as `separator` in the schema"
        )


def _check_kinds(place: str, feature: FeatureColumn, kinds: Sequence[str]) -> None:
  """Refuses events without a kind that tells them apart."""
  if feature.events and not 1 < len(kinds) <= _MOST_KINDS:
    shown = "no kind of event" if not kinds else f"{len(kinds)} (first: {kinds[0][:80]!r})"
    raise InputError(
      f"{place}: {feature.name!r}: column {feature.events!r} must hold 2 to {_MOST_KINDS} kinds of"
      f" events, and has {shown}; name the column of the kind, such as view or purchase, or leave"
      " `events` out"
    )


class _Ids:
  """Users or items: those of a table, or those that the log shows."""

  def __init__(
    self,
    side: str,
    file: File | None,
    key: str | None,
    features: Sequence[FeatureColumn],
    title: str | None = None,
    intervals: Mapping[str, str] = types.MappingProxyType({}),
  ):
    self.met = _Vocabulary()
    self.known: dict[str, IdSet] = {}
    self._listed = None
    self.interval = np.empty((0, 2))  # of the table
    if file is not None:
      self._listed = feature_tables.read(file, str(key), features, title, intervals)
      self.interval = _interval(self._listed)
      require(
        self.interval[:, 0] < self.interval[:, 1],
        f"{_place(file)}: column {intervals.get(AVAILABLE[0])!r}",
        f"must be a time before that in column {intervals.get(AVAILABLE[1])!r}",
        "mend these items, or exchange the columns",
      )
      self.known[f"{side}_id"] = IdSet(
        self._listed.ids,
        f"must name a known {side}: unknown {side}, not in {_place(file)}",
        f"add them to {_place(file)} or drop these rows",
      )

  def encode(self, ids: pa.ChunkedArray) -> np.ndarray:
    """A number for each id, [m] int32."""
    if self._listed is None:
      return self.met.encode(ids)
    return pc.index_in(ids, value_set=self._listed.ids).to_numpy().astype(np.int32)

  def table(self, columns: Columns) -> tuple[RawTable, np.ndarray]:
    """All of them, and the row of each number; `columns` are by number."""
    if self._listed is not None:
      return self._listed, np.arange(len(self._listed.ids), dtype=np.int32)
    values = list(self.met)
    order = natural_order(values)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    ids = pa.array(values, pa.string()).take(pa.array(order))
    return RawTable(ids, {name: column[order] for name, column in columns.items()}), rank


class _FirstValues:
  """The value of a user feature in the first row of each user."""

  def __init__(self, feature: FeatureColumn):
    self.feature = feature
    self._vocabulary = None if feature.kind == "numeric" else _Vocabulary()
    self._first = np.empty(0, np.float64)  # by number of the user; NaN: not met yet

  def agree(self, users: np.ndarray, num_users: int, column: pa.ChunkedArray) -> np.ndarray:
    """Whether each row has the first value of its user, [m] bool."""
    values = column.to_numpy() if self._vocabulary is None else self._vocabulary.encode(column)
    self._first = np.append(self._first, np.full(num_users - len(self._first), np.nan))
    new = np.flatnonzero(np.isnan(self._first[users]))[::-1]
    self._first[users[new]] = values[new]  # of several rows of a user the last assigned stays
    return self._first[users] == values

  def values(self) -> np.ndarray:
    """By number of the user."""
    if self._vocabulary is None:
      return self._first
    return strings(list(self._vocabulary))[self._first.astype(int)]


def _place(file: File) -> str:
  return file.place if isinstance(file, LogFiles) else str(file)


class _Vocabulary(dict[str, int]):
  """Numbers distinct strings in the order in which they first occur."""

  def encode(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Codes of the strings, [k] int32; new strings get the next ones."""
    encoded = pc.dictionary_encode(column)
    if isinstance(encoded, pa.ChunkedArray):
      encoded = encoded.combine_chunks()
    known = [self.setdefault(value, len(self)) for value in encoded.dictionary.to_pylist()]
    return np.array(known, np.int32)[encoded.indices.to_numpy()]
