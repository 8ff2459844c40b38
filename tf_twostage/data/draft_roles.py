"""Recognises the columns of a log: which role each plays, by names first and then by values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tf_twostage.data import splits

TYPE = re.compile(r":(token|float)(_seq)?$")  # of a column in RecBole's atomic files
_LEAST = float(np.finfo(np.float32).tiny)  # probability
_WITH_OTHERS = 0.5  # of the rows, at least, in a slate of several rows


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """The values of a column, [k]: as strings, and as numbers unless a cell is not a number."""

  name: str
  text: pd.Series
  numbers: np.ndarray | None
  dated: bool = False  # whether all cells but blank ones are dates
  lists: str = ""  # of cells that are lists: bag or embedding; `text` joins their values with "|"

  @property
  def distinct(self) -> int:
    return self.text.nunique()

  @property
  def has_blanks(self) -> bool:
    return bool((self.text == "").any())

  @property
  def whole(self) -> bool:
    return self.numbers is not None and bool((self.numbers == np.floor(self.numbers)).all())

  @property
  def plain_name(self) -> str:
    return TYPE.sub("", self.name)

  @property
  def is_id(self) -> bool:
    """Whether its name says that it is an id, of which the number means nothing."""
    return self.plain_name.lower().endswith("id") or _plain(self.plain_name) in _SLATES.split()

  def within(self, low: float, high: float) -> bool:
    return self.numbers is not None and self.numbers.min() >= low and self.numbers.max() <= high

  def facts(self) -> str:
    """A few words about the values."""
    if self.distinct == 1:
      return f"always {self.text.iloc[0]!r}"
    if self.dated:
      given = self.text[self.text != ""]
      return f"{given.min()} to {given.max()}"
    if self.numbers is None:
      return f"{self.distinct} different values"
    return f"{self.distinct} values, {self.numbers.min():.6g} to {self.numbers.max():.6g}"


class Found(NamedTuple):
  """What a draft says of a role."""

  columns: Sequence[Column]  # that it takes
  value: Any  # in the schema
  evidence: str


class _Role(NamedTuple):
  """How a column for a role is recognised."""

  names: str  # likeliest first, without case and punctuation
  fits: Callable[[Column], Any]  # what its values must be like
  obvious: Callable[[Column], Any] = lambda c: False  # what values suffice without a name


def _is_id(column: Column) -> bool:
  return column.distinct > 1 and (column.numbers is None or column.whole)


# Kinds of feedback, of which a log may have several.
_EVENTS = (
  "click clicked clicks isclick isclicked conversion converted isconversion purchase purchased"
  " ispurchase order ordered cart addtocart like liked share shared save saved follow followed"
  " watch watched watchtime watchseconds playtime dwelltime revenue"
)
_KINDS = "event eventtype eventname action actiontype interaction interactiontype activity type"
_MOST_KINDS = 50  # of events
_ROLES = {
  "item_id": _Role(
    "itemid item iid action actionid arm movieid productid articleid documentid docid contentid"
    " videoid adid assetid sku label product movie article video song content asset",
    _is_id,
  ),
  "user_id": _Role(
    "userid user uid customerid memberid visitorid accountid personid clientid visitor customer"
    " member account viewer",
    _is_id,
  ),
  "policy": _Role(
    "policy policyid policyname policyversion loggingpolicy servedby arm variant treatment"
    " algorithm modelversion",
    lambda c: 1 < c.distinct <= 50,
  ),
  "propensity": _Role(
    "propensity propensityscore pscore probability prob actionprob actionprobability loggingprob"
    " loggingprobability behaviorprob samplingprob",
    lambda c: c.within(_LEAST, 1),
    lambda c: c.within(_LEAST, 1) and not c.whole,
  ),
  "cascade_propensity": _Role(
    "cascadepropensity cascadepscore pscorecascade slatepropensity", lambda c: c.within(_LEAST, 1)
  ),
  "examination": _Role(
    "examination examinationprob examinationprobability examprob viewability viewprobability",
    lambda c: c.within(_LEAST, 1),
  ),
  "reward": _Role(
    f"reward {_EVENTS} feedback response outcome rating y",
    lambda c: c.within(0, np.inf) and not c.dated,
    lambda c: c.within(0, 1) and c.whole and c.distinct == 2,
  ),
  "time": _Role(
    "time timestamp ts datetime date eventtime createdat loggedat servedat shownat unixtime",
    lambda c: c.numbers is not None or (c.dated and not c.has_blanks),
    lambda c: c.dated and not c.has_blanks,
  ),
  "position": _Role(
    "position pos slot rank slotid slotindex itemposition displayposition displayrank",
    lambda c: c.whole and c.within(0, 10_000),
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
_SLATES = (
  "slateid slate impressionid impression requestid request listid list recommendationid responseid"
  " queryid query pageviewid sessionid session"
)


def find(columns: Sequence[Column]) -> tuple[dict[str, Found], list[str]]:
  """What columns there are by role, and remarks on roles that could not be given."""
  single: dict[str, tuple[Column, str]] = {}
  for evidence in ("by its name", "by its values"):
    for name, role in _ROLES.items():
      taken = [column for column, _ in single.values()]
      free = [column for column in columns if column not in taken]
      if evidence == "by its name":
        column = next(_named([c for c in free if role.fits(c)], role.names), None)
      else:
        column = next(filter(role.obvious, free), None)
      if name not in single and column is not None:
        single[name] = column, f"{evidence}; {column.facts()}"
  found = {name: Found([c], c.name, evidence) for name, (c, evidence) in single.items()}
  found |= _rewards(single, columns)
  found |= _propensities(single, columns)
  slates, remarks = _slates({name: column for name, (column, _) in single.items()}, columns)
  found |= slates
  if not slates or "propensity" not in found:
    found.pop("cascade_propensity", None)
  if "position" not in found:
    found.pop("examination", None)
  return found, remarks


def named(columns: Sequence[Column], names: str) -> Column | None:
  """The column with the likeliest of the names."""
  return next(_named(columns, names), None)


def events(columns: Sequence[Column], roles: Iterable[Found]) -> Column | None:
  """The column of the kind of event, such as view or purchase, that has no role yet."""
  taken = [column for found in roles for column in found.columns]
  free = [c for c in columns if c not in taken and c.numbers is None and not c.dated]
  return named([c for c in free if 1 < c.distinct <= _MOST_KINDS], _KINDS)


def _named(columns: Sequence[Column], names: str) -> Iterator[Column]:
  by_name = {_plain(column.plain_name): column for column in columns}
  return (by_name[name] for name in names.split() if name in by_name)


def _plain(name: str) -> str:
  return re.sub(r"[^a-z0-9]", "", name.lower())


def _rewards(
  roles: Mapping[str, tuple[Column, str]], columns: Sequence[Column]
) -> dict[str, Found]:
  """Several kinds of feedback as one reward, in which the mean of each that is not 0 counts 1."""
  column, _ = roles.get("reward", (None, ""))
  if column is None or _plain(column.plain_name) not in _EVENTS.split():
    return {}
  taken = [other for other, _ in roles.values() if other is not column]
  free = [c for c in columns if c not in taken and _ROLES["reward"].fits(c) and c.distinct > 1]
  kinds = [*_named(free, _EVENTS)]
  if len(kinds) < 2:
    return {}
  weights = {kind.name: _weight(kind) for kind in kinds}
  return {"reward": Found(kinds, weights, "by their names; set the weight of each")}


def _weight(column: Column) -> float:
  numbers = np.asarray(column.numbers)
  weight = float(f"{1 / numbers[numbers > 0].mean():.2g}")
  return int(weight) if weight == int(weight) else weight


def _propensities(
  roles: Mapping[str, tuple[Column, str]], columns: Sequence[Column]
) -> dict[str, Found]:
  """Columns of the propensities of each logging policy, such as p_old and p_new."""
  if "policy" not in roles:
    return {}
  fitting = [c for c in columns if c.within(0, 1) and c.distinct > 1]
  found = {
    policy: named(
      fitting,
      " ".join(f"{word}{_plain(policy)}" for word in ("p", "propensity", "pscore", "prob")),
    )
    for policy in sorted(set(roles["policy"][0].text))
  }
  if None in found.values():
    return {}
  chosen = [column for column in found.values() if column is not None]
  names = {policy: column.name for policy, column in found.items() if column is not None}
  return {"propensity": Found(chosen, names, "by the names of the policies")}


def _slates(
  roles: Mapping[str, Column], columns: Sequence[Column]
) -> tuple[dict[str, Found], list[str]]:
  """The id of slates and where their positions begin, and remarks on columns that look like it."""
  free = [c for c in columns if c not in roles.values()]
  candidates = [[c] for c in _named(free, _SLATES)]
  owner = named(free, "sessionid session visitid") or roles.get("user_id")
  if owner is not None and "time" in roles and "position" in roles:
    candidates.append([owner, roles["time"]])
  remarks = []
  for chosen in candidates:
    names = [column.name for column in chosen]
    value = names if len(names) > 1 else names[0]
    fault, alone = _fault([c.text for c in chosen], roles)
    if not fault:
      several = f"by {'its name' if len(names) == 1 else 'its values'}; "
      found = {"slate_id": Found(chosen, value, several + _sizes([c.text for c in chosen]))}
      if roles["position"].within(1, np.inf):
        found["first_position"] = Found([], 1, "positions count from 1")
      return found, []
    if not alone:
      remarks.append(f"slate_id: not {', '.join(names)}: {fault}")
  return {}, remarks


def _fault(parts: Sequence[pd.Series], roles: Mapping[str, Column]) -> tuple[str, bool]:
  """Why these columns are not the id of slates, "" if they are; and whether rows stand alone."""
  ids = pd.DataFrame({str(i): part for i, part in enumerate(parts)})
  number = ids.groupby([*ids], sort=False).ngroup()
  if number.duplicated(keep=False).mean() < _WITH_OTHERS:
    return "most rows have one of their own", True
  if "position" not in roles:
    return "MISSING: no column of the position of rows in slates", False
  cells = pd.DataFrame({"slate": number, "position": roles["position"].text})
  if (twice := int(cells.duplicated().sum())) > 0:
    return f"{twice} rows have the position of an earlier row of it", False
  if "user_id" in roles:
    users = roles["user_id"].text.groupby(number).nunique()
    if (several := int((users > 1).sum())) > 0:
      return f"{several} of {len(users)} have rows of several users", False
  return "", False


def _sizes(parts: Sequence[pd.Series]) -> str:
  sizes = pd.DataFrame({str(i): part for i, part in enumerate(parts)}).value_counts()
  return f"{len(sizes)} slates of {sizes.min()} to {sizes.max()} rows"
