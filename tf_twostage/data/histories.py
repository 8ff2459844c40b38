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
_UNKNOWN = "\0"  # no id contains it


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
  """The items of n rows, oldest first: the last `length` of codes[begin:end].

  Attributes:
    codes: [E] int32, item by item; the last one is padding.
    begin, end: [n] int64.
    latest: [2, U] int64, begin and end for each user after all rows of the log.
    length: how many items of a row are read at most, L.
  """

  codes: np.ndarray
  begin: np.ndarray
  end: np.ndarray
  latest: np.ndarray
  length: int = EncoderConfig.sequence_length

  def __len__(self) -> int:
    return len(self.begin)

  def select(self, rows: Any) -> Histories:
    """Those of some rows: a mask, indices, or a slice."""
    return dataclasses.replace(self, begin=self.begin[rows], end=self.end[rows])

  def of_users(self) -> Histories:
    """Those of all users after the last row of the log, [U]."""
    return dataclasses.replace(self, begin=self.latest[0], end=self.latest[1])

  @functools.cached_property
  def _tensors(self) -> tuple[tf.Tensor, ...]:
    import tensorflow as tf

    with tf.init_scope():  # constants of a graph would be limited to 2 GB
      return tuple(map(tf.convert_to_tensor, (self.codes, self.begin, self.end)))

  def padded(self, rows: Any) -> tf.Tensor:
    """Codes of the items of some rows, [m] to [m, L] int64; padding comes before them."""
    import tensorflow as tf

    codes, begin, end = self._tensors
    place = tf.gather(end, rows)[:, tf.newaxis] - tf.range(self.length, 0, -1, tf.int64)
    inside = place >= tf.gather(begin, rows)[:, tf.newaxis]
    found = tf.gather(codes, tf.where(inside, place, len(self.codes) - 1))
    return tf.cast(tf.where(inside, found, PADDING), tf.int64)

  def texts(self, rows: Any, ids: Sequence[str]) -> np.ndarray:
    """Ids of the items of some rows, [m, L] str, by the ids of the catalogue; "" is padding."""
    return np.array(["", _UNKNOWN, *ids], object)[self.padded(rows).numpy()]


def joined(parts: Sequence[Histories]) -> Histories:
  """The rows of all parts, in order; the latest are those of the last part."""
  sizes = np.cumsum([0, *(len(part.codes) for part in parts)])
  moved = list(zip(parts, sizes, strict=False))
  return dataclasses.replace(
    parts[-1],
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
) -> Histories:
  """For each row the items of its user's rows of an earlier time.

  Rows of one moment do not see each other. Rows of one slate see what was before all of them.

  Args:
    user, item, time: of the rows, [n].
    counts: whether a row becomes part of later histories, [n] bool.
    num_users: U.
    slate: number of each row's slate, [n], or None.
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
