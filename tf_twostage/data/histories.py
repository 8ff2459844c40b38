"""What a user did before each row of a log: the items of a sequence feature, without copies.

All rows share one array of items, sorted by user and time. A row is a range of it, and its history
the last items of that range.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage.config import EncoderConfig
from tf_twostage.data.schema import events_of

if TYPE_CHECKING:
  import tensorflow as tf

PADDING, UNKNOWN, FIRST = 0, 1, 2  # codes, as of bags: item or kind i has the code FIRST + i
AGES = 32  # codes of ages, each twice as long as the last: up to 68 years in seconds
_UNKNOWN = "\0"  # no id contains it


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
  """The items of n rows, oldest first: the last `length` of codes[begin:end].

  Attributes:
    codes: [E] int32, item by item; the last one is padding.
    begin, end: [n] int64.
    latest: [2, U] int64, begin and end for each user after all rows of the log.
    length: how many items of a row are read at most, L.
    times: of the items, [E] float64; None: ages are not read.
    now: the time of each row, [n] float64, or None.
    events: codes of the kinds of the events, [E] int32; None: kinds are not read.
    kinds: their names.
  """

  codes: np.ndarray
  begin: np.ndarray
  end: np.ndarray
  latest: np.ndarray
  length: int = EncoderConfig.sequence_length
  times: np.ndarray | None = None
  now: np.ndarray | None = None
  events: np.ndarray | None = None
  kinds: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.begin)

  def select(self, rows: Any) -> Histories:
    """Those of some rows: a mask, indices, or a slice."""
    now = None if self.now is None else self.now[rows]
    return dataclasses.replace(self, begin=self.begin[rows], end=self.end[rows], now=now)

  def of_users(self) -> Histories:
    """Those of all users after the last row of the log, [U]."""
    now = None if self.times is None else np.full(self.latest.shape[1], self.times.max())
    return dataclasses.replace(self, begin=self.latest[0], end=self.latest[1], now=now)

  @functools.cached_property
  def _tensors(self) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    names = ("codes", "begin", "end", "times", "now", "events")
    arrays = {name: array for name in names if (array := getattr(self, name)) is not None}
    with tf.init_scope():  # constants of a graph would be limited to 2 GB
      return {name: tf.convert_to_tensor(array) for name, array in arrays.items()}

  def _found(self, name: str, rows: Any) -> dict[str, tf.Tensor]:
    """Codes, ages and kinds of a feature of this name, [m, L] each; 0 before the items."""
    import tensorflow as tf

    own = self._tensors
    place = tf.gather(own["end"], rows)[:, tf.newaxis] - tf.range(self.length, 0, -1, tf.int64)
    inside = place >= tf.gather(own["begin"], rows)[:, tf.newaxis]
    place = tf.where(inside, place, len(self.codes) - 1)

    def there(values: tf.Tensor) -> tf.Tensor:
      return tf.where(inside, values, tf.zeros([], values.dtype))

    found = {name: tf.cast(there(tf.gather(own["codes"], place)), tf.int64)}
    if "times" in own:
      ages = tf.gather(own["now"], rows)[:, tf.newaxis] - tf.gather(own["times"], place)
      found[f"{name}_ages"] = there(ages)
    if "events" in own:
      found[events_of(name)] = tf.cast(there(tf.gather(own["events"], place)), tf.int64)
    return found

  def padded(self, rows: Any) -> tf.Tensor:
    """Codes of the items of some rows, [m] to [m, L] int64; padding comes before them."""
    return self._found("", rows)[""]

  def coded(self, name: str, rows: Any) -> dict[str, tf.Tensor]:
    """Codes of a feature of this name, as a lookup of its raw values gives them."""
    found, ages = self._found(name, rows), f"{name}_ages"
    return found | ({ages: age_codes(found[name], found[ages])} if ages in found else {})

  def raw(self, name: str, rows: Any, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Raw values of a feature of this name in some rows, [m, L] each: ids as text, ages, kinds."""
    found = {column: values.numpy() for column, values in self._found(name, rows).items()}
    for column, texts in ((name, ids), (events_of(name), self.kinds)):
      if column in found:
        found[column] = np.array(["", _UNKNOWN, *texts], object)[found[column]]
    return found


def age_codes(codes: tf.Tensor, ages: tf.Tensor) -> tf.Tensor:
  """1 + log2(1 + age), rounded down, at most `AGES`; 0 where there is no item. [B, L] int64."""
  import tensorflow as tf

  logs = tf.math.log1p(tf.maximum(tf.cast(ages, tf.float64), 0.0)) / np.log(2)
  return tf.where(codes > 0, 1 + tf.cast(tf.minimum(logs, AGES - 1.0), tf.int64), 0)


def joined(parts: Sequence[Histories]) -> Histories:
  """The rows of all parts, in order; the latest are those of the last part."""
  sizes = np.cumsum([0, *(len(part.codes) for part in parts)])
  moved = list(zip(parts, sizes, strict=False))
  both: dict[str, Any] = {
    name: np.concatenate([getattr(part, name) for part in parts])
    for name in ("times", "now", "events")
    if getattr(parts[0], name) is not None
  }
  return dataclasses.replace(
    parts[-1],
    **both,
    codes=np.concatenate([part.codes for part in parts]),
    begin=np.concatenate([part.begin + start for part, start in moved]),
    end=np.concatenate([part.end + start for part, start in moved]),
    latest=parts[-1].latest + sizes[-2],
  )


def earlier(
  user: np.ndarray,
  item: np.ndarray,
  time: np.ndarray,
  counts: np.ndarray,
  *,
  num_users: int,
  slate: np.ndarray | None = None,
  timed: bool = False,
  events: np.ndarray | None = None,
  kinds: tuple[str, ...] = (),
) -> Histories:
  """For each row the items of its user's rows of an earlier time.

  Rows of one moment do not see each other. Rows of one slate see what was before all of them.

  Args:
    user, item, time: of the rows, [n].
    counts: whether a row becomes part of later histories, [n] bool.
    num_users: U.
    slate: number of each row's slate, [n], or None.
    timed: whether to keep times, of which ages follow.
    events: the kind of each row, [n] int in [0, len(kinds)) where it counts; None: not read.
    kinds: their names.
  """
  asked = time
  if slate is not None:
    first = np.full(slate.max() + 1, np.inf)
    np.minimum.at(first, slate, time)
    asked = first[slate]
  moments = np.unique(time)

  def place(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A number that orders by user, then time."""
    return users.astype(np.int64) * (len(moments) + 1) + np.searchsorted(moments, times)

  places = place(user[counts], time[counts])
  order = np.argsort(places, kind="stable")
  users = np.concatenate([user, np.arange(num_users)])
  begin, end = (
    np.searchsorted(places[order], place(users, np.concatenate([times, np.full(num_users, last)])))
    for times, last in ((np.full(len(user), -np.inf), -np.inf), (asked, np.inf))
  )
  rows = slice(len(user))
  return Histories(
    codes=_codes(item[counts][order]),
    begin=begin[rows],
    end=end[rows],
    latest=np.stack([begin[len(user) :], end[len(user) :]]),
    times=np.append(time[counts][order], time.max()) if timed else None,
    now=asked if timed else None,
    events=None if events is None else _codes(events[counts][order]),
    kinds=kinds,
  )


def listed(
  cells: np.ndarray,
  separator: str,
  ids: Sequence[str],
  user: np.ndarray,
  time: np.ndarray | None,
  *,
  num_users: int,
  events: np.ndarray | None = None,
) -> Histories:
  """Lists of items as they were logged, in cells of text [n], oldest first.

  The latest list of a user is that of the last row by `time`, or in the order of the log. `events`
  are cells with as many kinds of events.
  """
  parts = _split(cells, separator)
  there = (parts != "").to_numpy()
  parts, of_events, kinds = parts[there], None, ()
  if events is not None:
    names = _split(events, separator)[there]
    kinds = tuple(sorted({*names} - {""}))
    of_events = _codes(pd.Index(kinds).get_indexer(pd.Index(names)))
  end = np.cumsum(np.bincount(parts.index, minlength=len(cells)))
  begin = np.concatenate([[0], end[:-1]])
  last = np.full(num_users, -1)
  order = np.arange(len(user)) if time is None else np.argsort(time, kind="stable")
  last[user[order]] = order  # of several rows of a user the last assigned stays
  latest = np.where(last >= 0, np.stack([begin[last], end[last]]), 0)
  codes = _codes(pd.Index(ids).get_indexer(pd.Index(parts)))
  return Histories(codes, begin, end, latest, events=of_events, kinds=kinds)


def _split(cells: np.ndarray, separator: str) -> pd.Series:
  return pd.Series(cells).str.split(separator, regex=False).explode().str.strip()


def _codes(numbers: np.ndarray) -> np.ndarray:
  """Codes of items or kinds, -1 where they are unknown, and padding."""
  return np.append(numbers + FIRST, PADDING).astype(np.int32)  # -1 + FIRST is UNKNOWN
