"""An invented log of slates with known relevance, examination and logging policies.

Two policies serve slates to users and log what is clicked. What a log leaves out is known here: the
relevance of every item, the probability that a slot is examined, and so the value of any ranking.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.data.log import BanditLog
from tf_twostage.data.plackett_luce import slot_probabilities
from tf_twostage.errors import InputError

# Arguments of `BanditLog.from_pandas` for a `SlateWorld.frame`.
COLUMNS = {
  "user": "user_id",
  "item": "item_id",
  "slate": "request_id",
  "position": "slot",
  "policy": "policy",
  "propensity": "propensity",
  "cascade_propensity": "cascade_propensity",
  "reward": "click",
  "time": "shown_at",
}
_AGES = np.array(["Under 18", "18-34", "35-54", "55+"])
_REGIONS = np.array(["North", "East", "South", "West", "Overseas"])
_GENRES = np.array(["Comedy", "Crime", "Drama", "Fantasy", "Music", "Romance", "Science"])
_FACTORS = 4
_NOISE = 1.0  # of the scores of a policy, in standard deviations of relevance
_START, _DAYS = pd.Timestamp("2026-01-01"), 28
_CHUNK = 2_000_000  # random numbers drawn at once


@dataclasses.dataclass(frozen=True, eq=False)
class SlateWorld:
  """Users, items, how users click, and the policies that serve them; `make_slates` makes one.

  A user requests slates at random. An item that is examined attracts the user with the probability
  of its relevance. Slot k is examined with probability `examination[k]`, whatever is shown
  (position-based model), or, with `continuation`, from the top until the user leaves: after a click
  in slot k they continue with probability `continuation[k]`, else always (dependent click model,
  Guo et al., WSDM 2009).

  Attributes:
    users: U rows: user_id, age, region.
    items: N rows: item_id, genre, decade.
    relevance: probability that an item attracts a user, [U, N].
    policies: Plackett-Luce logits of each policy by name, [U, N].
    shares: the share of the slates that each policy serves, in the order of `policies`.
    examination: probability that each slot is examined, [L].
    trust: probability of a click on an examined item that attracts, and on one that does not, by
      slot, [L, 2] (trust bias, Agarwal et al., WWW 2019). Ones and zeros: clicks tell attraction.
    continuation: [L], or None: the position-based model.
    distinct: whether a slate has no item twice. If not, each slot is drawn by itself.
  """

  users: pd.DataFrame
  items: pd.DataFrame
  relevance: np.ndarray
  policies: Mapping[str, np.ndarray]
  shares: tuple[float, ...]
  examination: np.ndarray
  trust: np.ndarray
  continuation: np.ndarray | None = None
  distinct: bool = True

  def __post_init__(self):
    size = len(self.examination)
    wanted = {"shares": (len(self.policies),), "trust": (size, 2), "continuation": (size,)}
    for name, shape in wanted.items():
      found = np.shape(value) if (value := getattr(self, name)) is not None else shape
      if found != shape:
        raise InputError(
          f"{name} must have shape {shape} for {size} slots and {len(self.policies)} policies, got"
          f" {found}"
        )

  @property
  def slate_size(self) -> int:
    return len(self.examination)

  def frame(self, num_slates: int, seed: int = 0) -> pd.DataFrame:
    """A log as production writes it, one row for each slot of each slate, in order of time.

    Args:
      num_slates: S slates, of L slots each.
      seed: fixes who comes, what is shown and what is clicked.

    Returns:
      S L rows: request_id, shown_at, user_id, policy, slot (0-based), item_id, propensity (of the
      row's item in the row's slot), cascade_propensity (of this and all earlier slots) and click.
    """
    rng = np.random.default_rng(seed)
    users = rng.integers(len(self.users), size=num_slates)
    policy = rng.choice(len(self.policies), size=num_slates, p=self.shares)
    shape = (num_slates, self.slate_size)
    items = np.empty(shape, np.int32)
    propensity, cascade = np.empty(shape), np.empty(shape)
    for number, (name, slots) in enumerate(self.logged_slots.items()):
      served = np.flatnonzero(policy == number)
      items[served], cascade[served] = self.draw(self.policies[name], users[served], rng)
      propensity[served] = slots[users[served, None], items[served], np.arange(self.slate_size)]
    seconds = np.sort(rng.uniform(high=_DAYS * 86400, size=num_slates)).astype("timedelta64[s]")
    request = {
      "request_id": pd.Series(_names("request", num_slates)),
      "shown_at": pd.Series(_START + pd.to_timedelta(seconds)),
      "user_id": self.users["user_id"].take(users),
      "policy": pd.Series(list(self.policies)).take(policy),
    }
    return pd.DataFrame(
      {name: column.repeat(self.slate_size).array for name, column in request.items()}
      | {
        "slot": np.tile(np.arange(self.slate_size), num_slates),
        "item_id": self.items["item_id"].take(items.ravel()).array,
        "propensity": propensity.ravel(),
        "cascade_propensity": cascade.ravel(),
        "click": self.clicks(users, items, rng).ravel().astype(int),
      }
    )

  def log(self, num_slates: int, seed: int = 0, **columns: Any) -> BanditLog:
    """The `frame` as a log; `columns` replace those of `COLUMNS`, such as `propensity=None`."""
    tables: dict[str, Any] = {"users": self.users, "items": self.items, "name": "synthetic slates"}
    return BanditLog.from_pandas(self.frame(num_slates, seed), **tables, **{**COLUMNS, **columns})

  def draw(
    self, logits: np.ndarray, users: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Slates of a policy with logits [U, N] for users [S].

    Returns:
      Items [S, L], and the probability of each slot and all before it, [S, L].
    """
    size, wide = self.slate_size, len(self.items)
    drawn = []
    for part in np.array_split(users, -(-len(users) * wide // _CHUNK) or 1):
      noise = rng.gumbel(size=(len(part), wide))
      if self.distinct:
        drawn.append(_top(logits[part] + noise, size))
      else:
        chance = _softmax(logits)[part].cumsum(axis=1)
        chosen = [np.sum(chance < rng.random((len(part), 1)), axis=1) for _ in range(size)]
        drawn.append(np.minimum(np.stack(chosen, axis=1), wide - 1))
    items = np.concatenate(drawn)
    chosen = _softmax(logits)[users[:, None], items]
    left = 1 - np.cumsum(chosen, axis=1) + chosen if self.distinct else 1.0
    return items, np.cumprod(chosen / left, axis=1)

  @functools.cached_property
  def logged_slots(self) -> dict[str, np.ndarray]:
    """`slot_probabilities` of each logging policy by name."""
    return {name: self.slot_probabilities(logits) for name, logits in self.policies.items()}

  def slot_probabilities(self, logits: np.ndarray) -> np.ndarray:
    """The probability that a policy shows each item in each slot, [B, N, L] of logits [B, N]."""
    if self.distinct:
      return slot_probabilities(logits, self.slate_size)
    return np.repeat(_softmax(logits)[..., None], self.slate_size, axis=-1)

  def clicks(self, users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws what users [S] click of slates [S, L]; [S, L] bool."""
    relevance = self.relevance[users[:, None], items]
    if self.continuation is None:
      return rng.random(items.shape) < self.examination * self._believed(relevance)
    clicked = rng.random(items.shape) < self._believed(relevance)
    leaves = clicked & (rng.random(items.shape) >= self.continuation)
    return clicked & (np.cumsum(leaves, axis=1) - leaves == 0)

  def click_rate(self) -> np.ndarray:
    """The probability of a click on each item in each slot, [U, N, L], position-based."""
    if self.continuation is not None:
      raise InputError("with continuation, clicks depend on the whole slate: draw them")
    return self.examination * self._believed(self.relevance[..., None])

  def best(self, size: int | None = None) -> np.ndarray:
    """The items of highest relevance in order, [U, size]: the optimum under full information."""
    return _top(self.relevance, size or self.slate_size)

  def ndcg(self, rankings: np.ndarray) -> float:
    """Expected NDCG of rankings [U, k] of distinct items, with relevance as gain; mean of users.

    Σ_i relevance_i / log2(i + 2) over ranks i from 0, divided by that of `best`.
    """
    discount = 1 / np.log2(np.arange(rankings.shape[1]) + 2)
    found = np.take_along_axis(self.relevance, rankings, axis=1) @ discount
    most = np.take_along_axis(self.relevance, self.best(rankings.shape[1]), axis=1) @ discount
    return float(np.mean(found / most))

  def _believed(self, relevance: np.ndarray) -> np.ndarray:
    """Clicks on examined items with the relevance of [..., L]."""
    return self.trust[:, 1] + (self.trust[:, 0] - self.trust[:, 1]) * relevance


def make_slates(
  num_users: int = 300,
  num_items: int = 100,
  slate_size: int = 10,
  *,
  policies: Mapping[str, float] | None = None,
  seed: int = 0,
  **behaviour: Any,
) -> SlateWorld:
  """Invents users, items and two policies that know something of what users like.

  Relevance is the logistic function of an inner product of factors, which depend in part on the
  features of users and items, plus the quality of the item.

  Args:
    num_users: U.
    num_items: N.
    slate_size: L.
    policies: how strongly each logging policy follows its own noisy idea of relevance, by name:
      the standard deviation of its logits; 0 shows items in random order. By default two, "old"
      and "new", at 1.
    seed: fixes users, items, relevance and policies.
    behaviour: fields of `SlateWorld` from `shares` on; by default equal shares, examination
      1 / (k + 1), and nothing else.

  Raises:
    InputError: a slate is larger than the catalogue, or a field has the wrong shape.
  """
  if not 1 <= slate_size <= num_items:
    raise InputError(f"slate_size must be within 1 and num_items {num_items}, got {slate_size}")
  if (given := len(behaviour.get("examination", range(slate_size)))) != slate_size:
    raise InputError(f"examination must have {slate_size} slots, as slate_size says, got {given}")
  strengths = {"old": 1.0, "new": 1.0} if policies is None else policies
  rng = np.random.default_rng(seed)

  def factors(number: int) -> np.ndarray:
    return rng.normal(size=(number, _FACTORS))

  age, region = rng.integers(len(_AGES), size=num_users), rng.integers(5, size=num_users)
  genre, decade = rng.integers(len(_GENRES), size=num_items), rng.integers(5, size=num_items)
  taste = factors(len(_AGES))[age] + factors(len(_REGIONS))[region] + factors(num_users)
  character = factors(len(_GENRES))[genre] + factors(5)[decade] + factors(num_items)
  score = _standard(_standard(taste @ character.T) + rng.normal(size=num_items))
  defaults: dict[str, Any] = {
    "shares": (1 / len(strengths),) * len(strengths),
    "examination": 1 / np.arange(1, slate_size + 1),
    "trust": np.tile([1.0, 0.0], (slate_size, 1)),
  }
  return SlateWorld(
    users=pd.DataFrame(
      {"user_id": _names("user", num_users), "age": _AGES[age], "region": _REGIONS[region]}
    ),
    items=pd.DataFrame(
      {
        "item_id": _names("item", num_items),
        "genre": _GENRES[genre],
        "decade": [f"{1970 + 10 * d}s" for d in decade],
      }
    ),
    relevance=1 / (1 + np.exp(1 - 1.5 * score)),
    policies={
      name: strength * _standard(score + _NOISE * rng.normal(size=score.shape))
      for name, strength in strengths.items()
    },
    **{**defaults, **behaviour},
  )


def _top(scores: np.ndarray, size: int) -> np.ndarray:
  """The `size` largest of each row, largest first."""
  last = scores.shape[1] - size
  found = np.argpartition(scores, last, axis=1)[:, last:]
  order = np.argsort(-np.take_along_axis(scores, found, axis=1), axis=1)
  return np.take_along_axis(found, order, axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def _standard(scores: np.ndarray) -> np.ndarray:
  return (scores - scores.mean()) / (scores.std() or 1.0)


def _names(prefix: str, number: int) -> np.ndarray:
  digits = len(str(number - 1))
  return np.array([f"{prefix}_{i:0{digits}}" for i in range(number)])
