"""Drafts the schema of a log from the names and values of its columns."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from tf_twostage.data import kinds, splits
from tf_twostage.data.files.columns import are_dates, as_numbers, as_text, as_times, is_list
from tf_twostage.data.files.locate import locate
from tf_twostage.data.files.reader import chunks
from tf_twostage.data.log_schema import RESERVED, ROLES
from tf_twostage.errors import InputError

_TYPE = re.compile(r":(token|float)(_seq)?$")  # of a column in RecBole's atomic files
_ROWS = 100_000  # of the first chunk that are looked at
_LEAST = float(np.finfo(np.float32).tiny)  # probability


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
  """The values of a column, [k]: as strings, and as numbers unless a cell is not a number."""

  name: str
  text: pd.Series
  numbers: np.ndarray | None
  dated: bool = False  # whether all cells are dates
  lists: str = ""  # of cells that are lists: bag or embedding; `text` joins their values with "|"

  @property
  def distinct(self) -> int:
    return self.text.nunique()

  @property
  def whole(self) -> bool:
    return self.numbers is not None and bool((self.numbers % 1 == 0).all())

  @property
  def plain_name(self) -> str:
    return _TYPE.sub("", self.name)

  def within(self, low: float, high: float) -> bool:
    return self.numbers is not None and self.numbers.min() >= low and self.numbers.max() <= high

  def facts(self) -> str:
    """A few words about the values."""
    if self.distinct == 1:
      return f"always {self.text.iloc[0]!r}"
    if self.dated:
      return f"{self.text.min()} to {self.text.max()}"
    if self.numbers is None:
      return f"{self.distinct} different values"
    return f"{self.distinct} values, {self.numbers.min():.6g} to {self.numbers.max():.6g}"


class _Role(NamedTuple):
  """How a column for a role is recognised."""

  names: str  # likeliest first, without case and punctuation
  fits: Callable[[_Column], Any]  # what its values must be like
  obvious: Callable[[_Column], Any] = lambda c: False  # what values suffice without a name
  missing: str = ""  # the comment in a draft without such a column


def _is_id(column: _Column) -> bool:
  return column.distinct > 1 and (column.numbers is None or column.whole)


_ROLES = {
  "item_id": _Role(
    "itemid item iid action actionid arm movieid productid articleid documentid docid contentid"
    " videoid adid assetid sku label product movie article video song content asset",
    _is_id,
    missing="MISSING: name the column of the item ids",
  ),
  "user_id": _Role(
    "userid user uid customerid memberid visitorid accountid personid clientid visitor customer"
    " member account viewer",
    _is_id,
    missing="none found; combinations of the user features are the users",
  ),
  "propensity": _Role(
    "propensity propensityscore pscore probability prob actionprob actionprobability loggingprob"
    " loggingprobability behaviorprob samplingprob",
    lambda c: c.within(_LEAST, 1),
    lambda c: c.within(_LEAST, 1) and not c.whole,
    "none found; they will have to be estimated",
  ),
  "reward": _Role(
    "reward click clicked clicks isclick isclicked conversion converted purchase purchased feedback"
    " response outcome rating y watchtime watchseconds dwelltime revenue",
    lambda c: c.within(0, np.inf) and not c.dated,
    lambda c: c.within(0, 1) and c.whole and c.distinct == 2,
    "MISSING: name the column of clicks, ratings or the like",
  ),
  "time": _Role(
    "time timestamp ts datetime date eventtime createdat loggedat unixtime",
    lambda c: c.dated or c.numbers is not None,
    lambda c: c.dated,
  ),
  "position": _Role(
    "position pos slot rank", lambda c: c.whole and c.within(0, 10_000), missing="none found"
  ),
  "ranker_score": _Role(
    "rankerscore ranker modelscore rankingscore score", lambda c: c.numbers is not None
  ),
  "split": _Role(
    "split fold subset partition",
    lambda c: splits.is_label(c.text).all(),
    lambda c: splits.is_label(c.text).all() and c.distinct > 1,
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
  roles = _roles(columns)
  lines = [
    f"# Drafted from the first {len(columns[0].text)} rows of {place}",
    "# Check every line: the draft is a guess from names and values.",
    "# Each line names the column of a role; null: the log has no such column.",
  ]
  for role in (role for role in ROLES if role in _ROLES):
    if role in roles:
      lines.append(_line(role, roles[role][0].name, roles[role][1]))
    elif _ROLES[role].missing:
      lines.append(_line(role, None, _ROLES[role].missing))
  chosen = {role: column for role, (column, _) in roles.items()}
  left = [c for c in columns if c not in chosen.values() and not _is_row_number(c)]
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
    if side == "item" and (title := _named(table, _TITLES)) is not None:
      lines.append(_line("title", title.name, "by its name"))
      table.remove(title)
    lines += _section(side, table, taken, unread)
    unread += repeated
  if users is None:
    lines += _section("user", user, taken, unread)
  lines += _section("context", context, taken, unread)
  if unread:
    lines += ["# Not read; list them under a heading above to let models read them:"]
    lines += [f"#   {name if name.isprintable() else repr(name)}" for name in _ranges(unread)]
  return "\n".join(lines) + "\n"


def _look(path: str | os.PathLike) -> tuple[str, list[_Column], list[str]]:
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


def _column(name: str, raw: pa.ChunkedArray) -> _Column:
  text = as_text(raw)[0].to_pandas()
  values, is_number = as_numbers(raw)
  dated = are_dates(raw) and bool(np.isfinite(as_times(raw)).all())
  if is_number.all() and not np.isnan(values).any() and not dated:
    return _Column(name, text, values)
  lists = kinds.infer(raw.to_pandas())[0] if is_list(raw.type) else ""
  return _Column(name, text, None, dated, lists)


def _roles(columns: Sequence[_Column]) -> dict[str, tuple[_Column, str]]:
  """Columns by role, with the evidence for each; names count before values."""
  found: dict[str, tuple[_Column, str]] = {}
  for evidence in ("by its name", "by its values"):
    for name, role in _ROLES.items():
      taken = [column for column, _ in found.values()]
      free = [column for column in columns if column not in taken]
      if evidence == "by its name":
        column = _named([c for c in free if role.fits(c)], role.names)
      else:
        column = next(filter(role.obvious, free), None)
      if name not in found and column is not None:
        found[name] = column, f"{evidence}; {column.facts()}"
  return found


def _named(columns: Sequence[_Column], names: str) -> _Column | None:
  by_name = {re.sub(r"[^a-z0-9]", "", column.plain_name.lower()): column for column in columns}
  return next((by_name[name] for name in names.split() if name in by_name), None)


def _is_row_number(column: _Column) -> bool:
  """Whether it is the unnamed index that pandas writes, or another row number."""
  numbers = column.numbers
  return not column.name or (
    column.name.lower().startswith(("unnamed", "index", "row"))
    and numbers is not None
    and column.distinct == len(numbers)
  )


def _sort_out(
  columns: Sequence[_Column], user: _Column | None, *, elsewhere: bool
) -> tuple[list[_Column], list[_Column], list[_Column]]:
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
    elif column.numbers is not None and user is not None and not describes_user:
      context.append(column)
    else:
      unread.append(column)
  return user_features, context, unread


def _key(table: Sequence[_Column], logged: _Column | None) -> _Column | None:
  """The column of a table that contains most of the log's ids."""
  if logged is None:
    return None
  ids = set(logged.text)
  distinct = [c for c in table if c.distinct == len(c.text)]
  best = max(distinct, key=lambda c: (len(ids & set(c.text)), c.name == logged.name), default=None)
  return best if best is not None and ids & set(best.text) else None


def _section(
  side: str, columns: Sequence[_Column], taken: set[str], unread: list[str]
) -> list[str]:
  """The lines of a heading. Adds to names that are taken, and to columns that are not read."""
  lines = []
  for column in columns:
    kind, separator = _kind(column)
    kind = "numeric" if side == "context" else kind
    if not kind:
      unread.append(column.name)
      continue
    name = f"{side}_{column.plain_name}" if column.plain_name in taken else column.plain_name
    taken.add(name)
    spec = {"kind": kind}
    spec |= {"column": column.name} if name != column.name else {}
    spec |= {"separator": separator} if separator else {}
    lines.append("  " + _line(name, spec if len(spec) > 1 else kind, column.facts()))
  return [f"{side}_features:", *lines] if lines else []


def _kind(column: _Column) -> tuple[str, str]:
  """Kind and, of a bag, separator; "" for a column that is not read."""
  if column.lists:
    return column.lists, "|" if column.lists == "bag" else ""
  if (typed := _TYPE.search(column.name)) and typed[1] == "token":
    return ("bag", " ") if typed[2] else ("categorical", "")
  if column.dated:
    return "", ""
  values = column.text.where(column.text != "") if column.numbers is None else column.numbers
  return kinds.infer(pd.Series(values))


def _line(key: str, value: str | Mapping[str, str] | None, comment: str) -> str:
  said = ": ".join(map(_yaml, (key, value)))
  return f"{said.ljust(30)}  # {comment}"


def _yaml(value: str | Mapping[str, str] | None) -> str:
  """YAML in one line; quotes escape line breaks."""
  texts = value.values() if isinstance(value, Mapping) else [value or ""]
  style = None if all(text.isprintable() for text in texts) else '"'
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
