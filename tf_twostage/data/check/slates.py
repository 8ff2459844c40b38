"""Facts and findings about the slates of a log, and about the policies that served them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage.data.check.facts import Fact, Finding, date
from tf_twostage.data.slates import LONGEST, UNIQUE_IDS

if TYPE_CHECKING:
  from tf_twostage.data.log import BanditLog

_ROUNDING = 1.001  # of propensities that were written with a few digits
_SHOWN = 10  # slots or policies, at most, that have a line of their own


def by_slot(log: BanditLog, chosen: np.ndarray | slice = slice(None)) -> pd.DataFrame:
  """Rewards by slot of the chosen rows: columns mean, sem (standard error, by slate) and count.

  A slate has one row in a slot, so that the rows of a slot are independent if slates are.
  """
  reward = pd.Series(log.rows.reward[chosen].astype(np.float64))
  position = np.asarray(log.rows.position)[chosen]
  return reward.groupby(position).agg(["mean", "sem", "count"])


def lines(log: BanditLog) -> Iterator[Fact | Finding]:
  """Sizes and faults of slates, and rewards by slot; nothing for a log without slates."""
  if log.slate is None or log.rows.position is None:
    return
  _, number = np.unique(log.slate, return_inverse=True)
  yield from _shapes(log, number, log.rows.position)
  yield from _rewards(log, number)


def _shapes(log: BanditLog, number: np.ndarray, position: np.ndarray) -> Iterator[Fact | Finding]:
  section, size = "Slates", np.bincount(number)
  last = np.zeros(len(size), np.int64)
  np.maximum.at(last, number, position)
  table = pd.DataFrame({"slate": number, "slot": position, "item": log.rows.action})
  doubles = int(table.duplicated(["slate", "slot"]).sum())
  repeats = int(table.duplicated(["slate", "item"]).sum())
  foreign = _divided(number, log.rows.user_index)
  short = int((size < last + 1).sum())
  yield Fact(section, "slates", len(size))
  yield Fact(
    section, "rows a slate", f"{size.min()} to {size.max()}", f"{size.mean():.4g} on average"
  )
  yield Fact(
    section, "slates that lack a slot", short, f"{_share(short, len(size))}; up to their last"
  )
  yield Fact(section, "rows in a slot that is taken", doubles, "should be 0")
  yield Fact(section, "slates of several users", foreign, "should be 0")
  if log.policy is not None and (divided := _divided(number, log.policy)):
    yield Fact(section, "slates of several policies", divided, "should be 0")
    yield Finding(
      "warning",
      f"{divided} of {len(size)} slates have rows of several policies, but one policy serves a"
      " slate: mend the ids of slates, or the column of policies",
    )
  if log.time is not None and (divided := _divided(number, log.time)):
    meaning = f"{_share(divided, len(size))}; the first row's counts"
    yield Fact(section, "slates of several times", divided, meaning)
  yield Fact(section, "rows of an item that is above", repeats, "in the same slate")
  if doubles:
    yield Finding(
      "problem",
      f"{doubles} rows have the slate and position of an earlier row; drop copies, or mend ids of"
      " slates and positions",
    )
  if foreign:
    yield Finding(
      "problem",
      f"{foreign} of {len(size)} slates have rows of several users; {UNIQUE_IDS}",
    )
  if (slots := int(position.max()) + 1) > LONGEST:
    yield Finding(
      "problem",
      f"positions reach {slots - 1}, of at most {LONGEST - 1}: a position is the slot in a slate,"
      " from 0; mend or drop these rows",
    )
  if log.rows.propensity is not None and log.cascade_propensity is not None:
    above = int((log.cascade_propensity > log.rows.propensity * _ROUNDING).sum())
  else:
    above = 0
  if above:
    yield Finding(
      "problem",
      f"{above} rows have a cascade_propensity above their propensity: it is the probability of"
      " this slot *and* all above it as they were shown; mend the column, or leave it out",
    )
  if size.max() == 1:
    yield Finding(
      "warning",
      "every slate has one row, so its id seems to be that of the row: name the id of the request,"
      " or leave `slate_id` out",
    )
  if lowest := int(position.min()):
    yield Finding(
      "problem",
      f"no row is in slot 0, the lowest is {lowest}: number slots from 0, or from 1 and write"
      " `first_position: 1` in the schema; log the slots above, if they were shown",
    )
  elif short and size.max() > 1:
    yield Finding(
      "warning",
      f"{short} of {len(size)} slates lack a slot above their last: log all slots that were shown,"
      " also without a click, or what is missing counts as not shown",
    )


def _divided(number: np.ndarray, values: np.ndarray) -> int:
  """How many slates have rows of several values; number of the slate and value are [n]."""
  one = np.empty(int(number.max()) + 1, values.dtype)
  one[number] = values
  return len(np.unique(number[one[number] != values]))


def _rewards(log: BanditLog, number: np.ndarray) -> Iterator[Fact | Finding]:
  section, slots = "Reward by slot", by_slot(log)
  for slot, (mean, error, count) in slots.head(_SHOWN).iterrows():
    meaning = f"± {error:.2g} by slate; {int(count):,} rows" if count > 1 else "of one row"
    yield Fact(section, f"slot {slot}", float(mean), meaning)
  if log.examination is None:
    yield Fact(section, "examination", "not logged", "training estimates it: --examination")
  else:
    lowest = float(log.examination.min())
    yield Fact(section, "lowest examination", lowest, "rewards are divided by it in training")
  rewarded = np.bincount(number, log.rows.reward > 0)
  one, several = int((rewarded == 1).sum()), int((rewarded > 1).sum())
  yield Fact(section, "slates with one reward", one, _share(one, len(rewarded)))
  yield Fact(section, "slates with several", several, _share(several, len(rewarded)))
  if not several and one:
    yield Finding(
      "note",
      "no slate has several rewards: users leave after the first, or only one is logged; a cascade"
      " model of examination may fit better than one by position",
    )


def policies(log: BanditLog) -> Iterator[Fact | Finding]:
  """Rows and times of each logging policy, where they were logged."""
  if log.policy is None:
    return
  section = "Logging policies"
  served: dict[str, Any] = {"policy": log.policy, "reward": log.rows.reward.astype(np.float64)}
  served |= {} if log.time is None else {"time": log.time}
  groups = pd.DataFrame(served).groupby("policy")
  counts = groups.size()
  for code in counts.nlargest(_SHOWN).index:
    rows, mean = int(counts[code]), float(groups["reward"].mean()[code])
    name = log.policies[code]
    yield Fact(
      section, f"rows of {name}", rows, f"{_share(rows, len(log))}; mean reward {mean:.4g}"
    )
  if log.time is None or log.time.min() == log.time.max():
    return
  span = groups["time"].agg(["min", "max"])
  for code in counts.nlargest(_SHOWN).index:
    meaning = f"last: {date(float(span['max'][code]))}"
    yield Fact(
      section, f"first row of {log.policies[code]}", date(float(span["min"][code])), meaning
    )
  ordered = span.sort_values("min")
  apart = ordered["min"].to_numpy()[1:] > np.maximum.accumulate(ordered["max"].to_numpy())[:-1]
  if apart.any():
    before, after = (log.policies[ordered.index[np.flatnonzero(apart)[0] + i]] for i in (0, 1))
    yield Finding(
      "warning",
      f"policy {after} begins after policy {before} ends: differences between them may be those of"
      " the times; serve them side by side, in a randomised test, to compare them",
    )


def _share(part: int, whole: int) -> str:
  return f"{part / whole:.2%}"
