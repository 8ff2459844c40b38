"""The files of a log -> chunks of checked rows: all data of users pass here."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data import splits
from tf_twostage.data.files.bad_rows import BadRows, Chunk
from tf_twostage.data.files.columns import (
  CheckedColumns,
  IdSet,
  are_dates,
  combinations,
  position_rule,
  propensity_rule,
  rule,
)
from tf_twostage.data.files.locate import LogFiles
from tf_twostage.data.log_schema import LogSchema, propensity_of, reward_of
from tf_twostage.data.schema import events_of
from tf_twostage.errors import InputError

NUMBERS = (
  "propensity",
  "cascade_propensity",
  "examination",
  "reward",
  "position",
  "ranker_score",
)


def read(
  files: LogFiles,
  schema: LogSchema,
  bad_rows: BadRows,
  *,
  user_features: bool = True,
  known: Mapping[str, IdSet] | None = None,
) -> Iterator[Chunk]:
  """Yields the good rows of a log chunk by chunk, and records the bad ones.

  Columns have their native or feature names, and no nulls: ids, policies, split labels, categories
  and bags are strings; propensities, examination, reward and ranker_score float32; position int32;
  time, context and numeric features float64.
  """
  wanted = schema.columns(user_features=user_features)
  # As in a native log.
  optional = ["position"] if schema.position == "position" and not schema.slate_id else []
  features = {
    f.name: f for f in (*schema.user_features, *schema.context_features, *schema.event_columns)
  }
  lists = {events_of(f.name): f for f in schema.sequences if f.events}
  loggers = {propensity_of(policy): policy for policy in schema.policies}
  parts = schema.rewards if isinstance(schema.reward, Mapping) else {}
  weights = {reward_of(column): weight for column, weight in parts.items()}
  numeric = {*NUMBERS, *(name for name, f in features.items() if f.kind == "numeric")}
  ids = {"user_id", "item_id", "policy", *schema.slate_columns}
  dates: bool | None = None
  keys = {events_of(f.name): f"`events` of {f.name}" for f in schema.sequences}
  for chunk in chunks(files, wanted, optional, keys):
    columns = CheckedColumns(chunk, bad_rows)
    checked: dict[str, Any] = {}
    for name in chunk.table.column_names:
      if name in features and "time" in checked and chunk.names[name] == schema.time:
        checked[name] = checked["time"]
      elif name == "time":
        if dates is None and len(chunk.rows):
          dates = are_dates(chunk.table[name])
        checked[name] = columns.times(name, bool(dates))
      elif name == "candidates":
        checked[name] = columns.lists(name)
      elif name == "position" and (first := schema.first_position):
        checked[name] = columns.numbers(name, position_rule(first)) - np.int32(first)
      elif name in numeric:
        checked[name] = columns.numbers(name)
      elif name in weights:
        weighted = weights[name] * columns.numbers(name, rule("reward")).astype(np.float64)
        total = checked.get("reward", 0) + weighted
        columns.require(rule("reward").valid(total), name, "must make a reward of at most 1e15")
        checked["reward"] = total
      elif name == "policy" and schema.policies:
        checked[name] = columns.text(name)
        expected = f"must be one of {', '.join(schema.policies[:9])}, whose propensities are named"
        remedy = "name the propensities of that policy, too, or drop these rows"
        columns.require(checked[name].to_pandas().isin(schema.policies), name, expected, remedy)
      elif name in loggers:
        own = (checked["policy"].to_pandas() == loggers[name]).to_numpy()
        checked[name] = columns.numbers(name, propensity_rule(own))
      elif name in ids:
        checked[name] = columns.ids(name, (known or {}).get(name))
      elif name == "split":
        checked[name] = columns.text(name)
        expected = f"must be {', '.join(splits.NAMES)}"
        remedy = "write one of these, or leave `split` out of the schema"
        columns.require(splits.is_label(checked[name].to_pandas()), name, expected, remedy)
      else:
        several = features[name].kind in ("bag", "sequence")
        checked[name] = columns.text(name, features[name].separator if several else None)
        if several and name in lists:
          items = lists[name]
          same = np.equal(*(_lengths(checked[n], items.separator) for n in (name, items.name)))
          expected = f"must list one kind of event for each item of column {items.column!r}"
          columns.require(same, name, expected, "write lists of one length, or leave `events` out")
    if len(schema.slate_columns) > 1:
      checked["slate_id"] = combinations([checked.pop(name) for name in schema.slate_columns])
    if weights:
      checked["reward"] = checked["reward"].astype(np.float32)
    elif schema.reward is None:
      checked["reward"] = np.ones(len(chunk.rows), np.float32)
    yield columns.good_rows(checked)
  files.check_rows(bad_rows.rows)
  if not bad_rows.rows:
    raise InputError(f"{files.place}: the log has no rows; log some traffic first")


def _lengths(cells: pa.Array, separator: str) -> np.ndarray:
  """How many values there are in each cell of text, [k]."""
  return pc.count_substring(cells, separator).to_numpy() + pc.greater(
    pc.utf8_length(cells), 0
  ).to_numpy(zero_copy_only=False)


def chunks(
  files: LogFiles,
  wanted: Mapping[str, str],
  optional: Collection[str] = (),
  keys: Mapping[str, str] | None = None,
) -> Iterator[Chunk]:
  """Yields unchecked rows; `wanted` maps names of columns to those in files.

  The first file decides which of the optional columns there are. `keys` has what the schema calls
  columns, where that is not their name.
  """
  columns: dict[str, str] = {}
  for path in files.paths:
    try:
      names = files.format.column_names(path)
      if not names:  # a shard without records
        continue
      lacking = {name for name in optional if not columns and wanted[name] not in names}
      columns = columns or {name: wanted[name] for name in wanted if name not in lacking}
      _require_columns(path, names, {(keys or {}).get(n, n): c for n, c in columns.items()})
      for chunk in files.format.read(path, list(dict.fromkeys(columns.values()))):
        table = chunk.table.select(list(columns.values())).rename_columns(list(columns))
        yield dataclasses.replace(chunk, table=table, names=columns)
    except OSError as error:
      raise InputError(
        f"{path}: cannot be read ({error.strerror}); mend its permissions, or name another"
      ) from None


def _require_columns(path: pathlib.Path, names: list[str], columns: Mapping[str, str]) -> None:
  found = collections.Counter(names)
  missing = {role: column for role, column in columns.items() if column not in found}
  if missing:
    shown = ", ".join(repr(name[:80]) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    # The ids of a users or items file have no role but these two.
    roles = ", ".join(role or "the id (item_key or user_key)" for role in [*missing][:9])
    null = " (`propensity: null` if there are none)" if "propensity" in missing else ""
    lacking = [column[:80] for column in dict.fromkeys(missing.values())]
    raise InputError(
      f"{path}: missing column(s) {lacking[:9]}; found {shown}; mend the header, or"
      f" say in the schema which column is {roles}{null}"
    )
  twice = [column for column in columns.values() if found[column] > 1]
  if twice:
    raise InputError(
      f"{path}: column {twice[0]!r} is there {found[twice[0]]} times; keep one of them"
    )
