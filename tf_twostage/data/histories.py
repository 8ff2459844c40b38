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

if TYPE_CHECKING:
  import tensorflow as tf

PADDING, UNKNOWN, FIRST = 0, 1, 2  # codes, as of bags: item i has the code FIRST + i
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
  """

  codes: np.ndarray
  begin: np.ndarray
  end: np.ndarray
  latest: np.ndarray
  length: int = EncoderConfig.sequence_length
  times: np.ndarray | None = None
  now: np.ndarray | None = None

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
  def _tensors(self) -> tuple[tf.Tensor, ...]:
    import tensorflow as tf

    with tf.init_scope():  # constants of a graph would be limited to 2 GB
      timed = () if self.times is None else (self.times, self.now)
      return tuple(map(tf.convert_to_tensor, (self.codes, self.begin, self.end, *timed)))

  def _found(self, rows: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Codes and ages of some rows, [m, L] each; 0 before the items."""
    import tensorflow as tf

    codes, begin, end, *timed = self._tensors
    place = tf.gather(end, rows)[:, tf.newaxis] - tf.range(self.length, 0, -1, tf.int64)
    inside = place >= tf.gather(begin, rows)[:, tf.newaxis]
    place = tf.where(inside, place, len(self.codes) - 1)
    found = tf.cast(tf.where(inside, tf.gather(codes, place), PADDING), tf.int64)
    if not timed:
      return found, None
    times, now = timed
    ages = tf.gather(now, rows)[:, tf.newaxis] - tf.gather(times, place)
    return found, tf.where(inside, ages, 0.0)

  def padded(self, rows: Any) -> tf.Tensor:
    """Codes of the items of some rows, [m] to [m, L] int64; padding comes before them."""
    return self._found(rows)[0]

  def coded(self, name: str, rows: Any) -> dict[str, tf.Tensor]:
    """Codes of a feature of this name, as a lookup of its raw values gives them."""
    codes, ages = self._found(rows)
    return {name: codes} | ({} if ages is None else {f"{name}_ages": age_codes(codes, ages)})

  def raw(self, name: str, rows: Any, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Raw values of a feature of this name in some rows, [m, L] each: ids as text, and ages."""
    codes, ages = self._found(rows)
    texts = np.array(["", _UNKNOWN, *ids], object)[codes.numpy()]
    return {name: texts} | ({} if ages is None else {f"{name}_ages": ages.numpy()})


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
    for name in ("times", "now")
    if parts[0].times is not None
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
) -> Histories:
  """For each row the items of its user's rows of an earlier time.

  Rows of one moment do not see each other. Rows of one slate see what was before all of them.

  Args:
    user, item, time: of the rows, [n].
    counts: whether a row becomes part of later histories, [n] bool.
    num_users: U.
    slate: number of each row's slate, [n], or None.
    timed: whether to keep times, of which ages follow.
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
    codes=np.append(item[counts][order] + FIRST, PADDING).astype(np.int32),
    begin=begin[rows],
    end=end[rows],
    latest=np.stack([begin[len(user) :], end[len(user) :]]),
    times=np.append(time[counts][order], time.max()) if timed else None,
    now=asked if timed else None,
  )


def listed(
  cells: np.ndarray,
  separator: str,
  ids: Sequence[str],
  user: np.ndarray,
  time: np.ndarray | None,
  *,
  num_users: int,
) -> Histories:
  """Lists of items as they were logged, in cells of text [n], oldest first.

  The latest list of a user is that of the last row by `time`, or in the order of the log.
  """
  parts = pd.Series(cells).str.split(separator, regex=False).explode().str.strip()
  parts = parts[parts != ""]
  end = np.cumsum(np.bincount(parts.index, minlength=len(cells)))
  begin = np.concatenate([[0], end[:-1]])
  last = np.full(num_users, -1)
  order = np.arange(len(user)) if time is None else np.argsort(time, kind="stable")
  last[user[order]] = order  # of several rows of a user the last assigned stays
  latest = np.where(last >= 0, np.stack([begin[last], end[last]]), 0)
  codes = pd.Index(ids).get_indexer(pd.Index(parts)) + FIRST  # -1 + FIRST is UNKNOWN
  return Histories(np.append(codes, PADDING).astype(np.int32), begin, end, latest)
