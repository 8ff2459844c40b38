"""Drafts the schema of a log from the names and values of its columns."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from tf_twostage.data import draft_roles, kinds
from tf_twostage.data.draft_roles import Column
from tf_twostage.data.files.columns import are_dates, as_numbers, as_text, as_times, is_list
from tf_twostage.data.files.locate import locate
from tf_twostage.data.files.reader import chunks
from tf_twostage.data.log_schema import RESERVED, ROLES
from tf_twostage.data.schema import can_be_input
from tf_twostage.errors import InputError

_ROWS = 100_000  # of the first chunk that are looked at
# What a draft says of roles without a column.
_MISSING = {
  "item_id": "MISSING: name the column of the item ids",
  "user_id": "none found; combinations of the user features are the users",
  "propensity": "none found; they will have to be estimated",
  "reward": "MISSING: name the column of clicks, ratings or the like",
  "position": "none found",
}
# Proposed in a comment: rows that do not fit are bad.
_CANDIDATES = "candidates candidateids candidateitems candidateset pool shortlist eligible"
_AVAILABLE = {
  "available_from": (
    "availablefrom validfrom onlinefrom onsalefrom startdate startsat start launchdate launchedat"
    " releasedate publishedat",
    "when items come",
  ),
  "available_to": (
    "availableto availableuntil validto validuntil onlineuntil enddate endsat end expirydate"
    " expiresat",
    "when they go",
  ),
}
_TITLES = "title name itemname productname movietitle headline"


def draft(
  log: str | os.PathLike,
  items: str | os.PathLike | None = None,
  users: str | os.PathLike | None = None,
) -> str:
  """The text of a schema file for the log and its tables; comments give evidence for each line."""
  place, columns, repeated = _look(log)
  roles, remarks = draft_roles.find(columns)
  lines = [
    f"# Drafted from the first {len(columns[0].text)} rows of {place}",
    "# Check every line: the draft is a guess from names and values.",
    "# Each line names the column of a role; null: the log has no such column.",
  ]
  for role in (*ROLES, "first_position"):
    if role in roles:
      lines.append(_line(role, roles[role].value, roles[role].evidence))
    elif role in _MISSING:
      lines.append(_line(role, None, _MISSING[role]))
  lines += [f"# {remark}" for remark in remarks]
  if (pool := draft_roles.named(columns, _CANDIDATES)) is not None:
    lines.append(
      f"# {_line('candidates', pool.name, 'by its name: the items that a row could show')}"
    )
  chosen = {role: found.columns[0] for role, found in roles.items() if found.columns}
  if {"user_id", "item_id", "time"} <= chosen.keys() and chosen["user_id"].text.duplicated().any():
    history = {"kind": "sequence", "column": chosen["item_id"].name}
    if (events := draft_roles.events(columns, roles.values())) is not None:
      history["events"] = events.name
    lines.append(f"# {_line('history', history, 'for user_features: what users did before a row')}")
  used = [column for found in roles.values() for column in found.columns]
  left = [c for c in columns if c not in used and not _is_row_number(c)]
  user, context, others = _sort_out(left, chosen.get("user_id"), elsewhere=users is not None)
  unread = [*(c.name for c in others), *repeated]
  taken = {*RESERVED}
  for side, path in (("item", items), ("user", users)):
    if path is None:
      continue
    (_, table, repeated), logged = _look(path), chosen.get(f"{side}_id")
    key = _key(table, logged)
    if key is None:
      lines.append(f"# {side}_key:  # MISSING: no column of {path} looks like the log's {side}_id")
    elif logged is None or key.name != logged.name:
      lines.append(_line(f"{side}_key", key.name, f"in {path}"))
    table = [c for c in table if c is not key and not _is_row_number(c)]
    dates = [c for c in table if c.dated]
    if side == "item" and (title := draft_roles.named(table, _TITLES)) is not None:
      lines.append(_line("title", title.name, "by its name"))
      table.remove(title)
    for role, (names, meaning) in _AVAILABLE.items():
      if side == "item" and (column := draft_roles.named(table, names)) is not None:
        lines.append(f"# {_line(role, column.name, f'by its name: {meaning}; needs time')}")
        table.remove(column)
      elif side == "item" and role == "available_from" and dates:
        hint = f"dates: only if items come then; needs time; {dates[0].facts()}"
        lines.append(f"# {_line(role, dates[0].name, hint)}")
    lines += _section(side, table, taken, unread)
    unread += repeated
  if users is None:
    lines += _section("user", user, taken, unread)
  lines += _section("context", context, taken, unread)
  if unread:
    lines += ["# Not read; list them under a heading above to let models read them:"]
    lines += [f"#   {name if name.isprintable() else repr(name)}" for name in _ranges(unread)]
  return "\n".join(lines) + "\n"


def _look(path: str | os.PathLike) -> tuple[str, list[Column], list[str]]:
  """The place, its columns in the first chunk, and names that several columns share."""
  found = locate(path)
  for file in found.paths:
    names = found.format.column_names(file)
    single = [name for name in names if names.count(name) == 1]
    alone = dataclasses.replace(found, paths=(file,))
    for chunk in chunks(alone, {name: name for name in single}):
      if len(chunk.table):
        columns = [_column(name, chunk.table[name][:_ROWS]) for name in single]
        return found.place, columns, sorted({*names} - {*single})
  raise InputError(f"{found.place}: there are no rows to draft a schema from")


def _column(name: str, raw: pa.ChunkedArray) -> Column:
  text = as_text(raw)[0].to_pandas()
  values, is_number = as_numbers(raw)
  given = raw.filter(pa.array(text != ""))
  dated = len(given) > 0 and are_dates(given) and bool(np.isfinite(as_times(given)).all())
  if is_number.all() and not np.isnan(values).any() and not dated:
    return Column(name, text, values)
  lists = kinds.infer(raw.to_pandas())[0] if is_list(raw.type) else ""
  return Column(name, text, None, dated, lists)


def _is_row_number(column: Column) -> bool:
  """Whether it is the unnamed index that pandas writes, or another row number."""
  numbers = column.numbers
  return not column.name or (
    column.name.lower().startswith(("unnamed", "index", "row"))
    and numbers is not None
    and column.distinct == len(numbers)
  )


def _sort_out(
  columns: Sequence[Column], user: Column | None, *, elsewhere: bool
) -> tuple[list[Column], list[Column], list[Column]]:
  """The log's other columns: user features, context features, and columns that are not read.

  A column that is constant within each user is a user feature, and other numbers are context.
  Without user ids, all columns but numbers are user features. Constant columns are not read.
  """
  user_features, context, unread = [], [], []
  for column in columns:
    describes_user = column.numbers is None
    if user is not None:
      seen_again = user.text.duplicated(keep=False)
      values = column.text[seen_again].groupby(user.text[seen_again]).nunique()
      describes_user = len(values) > 0 and bool((values <= 1).all())
    if column.distinct == 1 or column.name in RESERVED or column.lists == "embedding":
      unread.append(column)
    elif describes_user and not elsewhere and not column.dated:
      user_features.append(column)
    elif column.numbers is not None and user and not describes_user and not column.is_id:
      context.append(column)
    else:
      unread.append(column)
  return user_features, context, unread


def _key(table: Sequence[Column], logged: Column | None) -> Column | None:
  """The column of a table that contains most of the log's ids."""
  if logged is None:
    return None
  ids = set(logged.text)
  distinct = [c for c in table if c.distinct == len(c.text)]
  best = max(distinct, key=lambda c: (len(ids & set(c.text)), c.name == logged.name), default=None)
  return best if best is not None and ids & set(best.text) else None


def _section(side: str, columns: Sequence[Column], taken: set[str], unread: list[str]) -> list[str]:
  """The lines of a heading. Adds to names that are taken, and to columns that are not read."""
  lines = []
  for column in columns:
    kind, separator = _kind(column)
    kind = "numeric" if side == "context" else kind
    if not kind:
      unread.append(column.name)
      continue
    name = column.plain_name
    if side != "item" and not can_be_input(name):
      name = re.sub(r"\W", "_", name, flags=re.ASCII)
    if name in taken or not (side == "item" or can_be_input(name)):
      name = f"{side}_{name}"
    while name in taken:
      name += "_"
    taken.add(name)
    spec = {"kind": kind}
    spec |= {"column": column.name} if name != column.name else {}
    spec |= {"separator": separator} if separator else {}
    lines.append("  " + _line(name, spec if len(spec) > 1 else kind, column.facts()))
  return [f"{side}_features:", *lines] if lines else []


def _kind(column: Column) -> tuple[str, str]:
  """Kind and, of a bag, separator; "" for a column that is not read."""
  if column.lists:
    return column.lists, "|" if column.lists == "bag" else ""
  if (typed := draft_roles.TYPE.search(column.name)) and typed[1] == "token":
    return ("bag", " ") if typed[2] else ("categorical", "")
  if column.dated:
    return "", ""
  values = column.text.where(column.text != "") if column.numbers is None else column.numbers
  return kinds.infer(pd.Series(values))


def _line(key: str, value: Any, comment: str) -> str:
  said = ": ".join(map(_yaml, (key, value)))
  return f"{said.ljust(30)}  # {comment}"


def _yaml(value: Any) -> str:
  """YAML in one line; quotes escape line breaks."""
  style = None if repr(value).isprintable() and "\\" not in repr(value) else '"'
  text = yaml.safe_dump(
    value,
    default_flow_style=True,
    default_style=style,
    allow_unicode=True,
    width=10**6,
    sort_keys=False,
  )
  return text.removesuffix("...\n").strip()


def _ranges(names: Sequence[str]) -> Iterator[str]:
  """Names; several that differ only in a final number are shortened to first ... last."""
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(re.sub(r"\d+$", "", name), []).append(name)
  for group in groups.values():
    yield from group if len(group) < 4 else [f"{group[0]} ... {group[-1]} ({len(group)} columns)"]
