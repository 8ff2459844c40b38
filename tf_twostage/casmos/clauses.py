"""Clauses: pairs of a user's term and an item's term with a weight, in a JSON file.

  {"threshold": 1.5, "clauses": [
    {"user": {"occupation": "student"}, "item": {"genres": "Comedy"}, "weight": 0.8},
    {"user": {}, "item": {"year": {"from": 1990, "below": 2000}}, "weight": 0.3}]}

A list stands for several values that must all be there.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from tf_twostage.casmos.terms import Condition, Term
from tf_twostage.errors import InputError


@dataclasses.dataclass(frozen=True)
class Clause:
  """Adds `weight`, above 0, to the scores of pairs that meet both terms."""

  user: Term
  item: Term
  weight: float

  def __str__(self) -> str:
    return " x ".join(" and ".join(map(_text, term)) for term in (self.user, self.item) if term)


@dataclasses.dataclass(frozen=True)
class Query:
  """A weighted AND query: items are candidates whose matched weights reach the threshold.

  None: the threshold is not chosen yet.
  """

  clauses: tuple[Clause, ...]
  threshold: float | None = None

  def to_json(self) -> str:
    """The file's text; clauses with the largest weights come first."""
    ordered = sorted(self.clauses, key=lambda c: (-c.weight, repr(c)))
    lines = [
      json.dumps({"user": _plain(c.user), "item": _plain(c.item), "weight": round(c.weight, 6)})
      for c in ordered
    ]
    body = ",\n".join(lines)
    return f'{{"threshold": {json.dumps(self.threshold)}, "clauses": [\n{body}\n]}}\n'

  @classmethod
  def read(cls, path: pathlib.Path) -> Query:
    """Raises: InputError: the file is missing, or does not hold clauses."""
    try:
      found = json.loads(path.read_text(encoding="utf-8"))
      clauses = tuple(
        Clause(_term(c["user"]), _term(c["item"]), float(c["weight"])) for c in found["clauses"]
      )
      threshold = found.get("threshold")
      made = cls(clauses, None if threshold is None else float(threshold))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f'{path}: not readable as clauses ({error!r}); write {{"threshold": number or null,'
        ' "clauses": [{"user": {feature: value}, "item": {feature: value}, "weight": number}, ...]}'
      ) from error
    wrong = [c for c in clauses if not 0 < c.weight < float("inf") or not c.item]
    if wrong or not clauses:
      raise InputError(
        f"{path}: {len(wrong)} of {len(clauses)} clauses have a weight that is not above 0, or no"
        f" condition on the item{f' (first: {wrong[0]})' if wrong else ''}; mend or delete them"
      )
    return made


def _text(condition: Condition) -> str:
  name, value = condition
  if isinstance(value, tuple):
    low, high = value
    return f"{'' if low is None else f'{low:g} <= '}{name}{'' if high is None else f' < {high:g}'}"
  return f"{name}={value}"


def _plain(term: Term) -> dict[str, Any]:
  """A term as JSON."""
  plain: dict[str, list[Any]] = {}
  for name, value in term:
    given: Any = value
    if isinstance(value, tuple):
      ends = zip(("from", "below"), value, strict=True)
      given = {end: limit for end, limit in ends if limit is not None}
    plain.setdefault(name, []).append(given)
  return {name: given[0] if len(given) == 1 else given for name, given in plain.items()}


def _term(plain: dict[str, Any]) -> Term:
  conditions: list[Condition] = []
  for name, given in plain.items():
    for value in given if isinstance(given, list) else [given]:
      if isinstance(value, dict):
        if extra := {*value} - {"from", "below"}:
          raise ValueError(f"{name}: a range has the limits from and below, got {sorted(extra)}")
        low, high = (None if (v := value.get(n)) is None else float(v) for n in ("from", "below"))
        conditions.append((name, (low, high)))
      elif isinstance(value, str | int) and not isinstance(value, bool):
        conditions.append((name, value))
      else:
        raise ValueError(f"{name}: a value is a text, a position, a range or a list, got {value!r}")
  return tuple(conditions)
