"""Which items a row of a log could have shown: those there were, and among its candidates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError

if TYPE_CHECKING:
  import tensorflow as tf


_PAIRS_PER_CHUNK = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogues:
  """S different sets of the N items of a catalogue; the rows of a log name theirs by number.

  Attributes:
    interval: [N, 2] float64; there is an item at times from the first to before the second.
    newest: the latest time of the log.
    times: [S] float64, a time at which each set was complete.
    lists: [S] int32, the list of candidates of each set; None: all items there are.
    splits: [L + 1] int64, where each list begins in `candidates`, and the end.
    candidates: [C] int32, the items of all lists.
  """

  interval: np.ndarray
  newest: float
  times: np.ndarray
  lists: np.ndarray | None = None
  splits: np.ndarray | None = None
  candidates: np.ndarray | None = None

  @classmethod
  def of_rows(
    cls,
    interval: np.ndarray,
    time: np.ndarray,
    listed: np.ndarray | None = None,
    lists: Sequence[np.ndarray] = (),
  ) -> tuple[Catalogues, np.ndarray]:
    """The sets of n rows, and the number of each row's set, [n] int32.

    Args:
      interval: [N, 2].
      time: [n].
      listed: [n], the place in `lists` of each row's candidates; None: no candidates were logged.
      lists: the items of each list of candidates.
    """
    changes = np.unique(interval[np.isfinite(interval)])
    era = np.searchsorted(changes, time, side="right").astype(np.int64)
    key = era if listed is None else era * len(lists) + listed
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    of_lists: dict[str, Any] = {}
    if listed is not None:
      of_lists["lists"] = listed[first]
      of_lists["splits"] = np.append(0, np.cumsum([len(items) for items in lists]))
      of_lists["candidates"] = np.concatenate(lists).astype(np.int32)
    return cls(interval, float(time.max()), time[first], **of_lists), number.astype(np.int32)

  @property
  def changes(self) -> bool:
    """Whether items come or go."""
    return bool(np.isfinite(self.interval).any())

  def arrays(self) -> dict[str, np.ndarray]:
    """All arrays by name."""
    held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {f"catalogues.{name}": np.asarray(a) for name, a in held.items() if a is not None}

  def available(self, numbers: Any) -> tf.Tensor:
    """The items of some sets: numbers [B] to [B, N] bool."""
    import tensorflow as tf

    held = self._tensors
    time = tf.gather(held["times"], numbers)[:, tf.newaxis]
    could = there_are(held["interval"], time)
    if self.lists is None:
      return could
    lists = tf.RaggedTensor.from_row_splits(held["candidates"], held["splits"], validate=False)
    listed = tf.gather(lists, tf.gather(held["lists"], numbers))
    pairs = tf.stack([tf.cast(listed.value_rowids(), tf.int32), listed.values], axis=1)
    counts = tf.scatter_nd(pairs, tf.ones_like(listed.values), tf.shape(could))
    return tf.ensure_shape(could & (counts > 0), could.shape)

  def sizes(self) -> np.ndarray:
    """The number of items of each set, [S]."""
    if self.lists is None or self.splits is None or self.candidates is None:
      starts, ends = np.sort(self.interval, axis=0).T
      return np.searchsorted(starts, self.times, "right") - np.searchsorted(
        ends, self.times, "right"
      )
    length = np.diff(self.splits)[self.lists]
    number = np.repeat(np.arange(len(length)), length)
    place = np.arange(len(number)) - np.repeat(np.cumsum(length) - length, length)
    items = self.candidates[self.splits[self.lists][number] + place]
    (start, end), time = self.interval[items].T, self.times[number]
    return np.bincount(number, (start <= time) & (time < end), len(length)).astype(int)

  def counts(self, numbers: np.ndarray) -> np.ndarray:
    """How many of the sets, [n], have each item: [N]."""
    times = np.bincount(numbers, minlength=len(self.times))
    size = max(1, _PAIRS_PER_CHUNK // len(self.interval))
    chunks = (np.arange(s, min(s + size, len(times))) for s in range(0, len(times), size))
    return sum(times[some] @ np.asarray(self.available(some)) for some in chunks)

  @functools.cached_property
  def _tensors(self) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    with tf.init_scope():
      return {n.removeprefix("catalogues."): tf.constant(a) for n, a in self.arrays().items()}

  def interval_of(self, ids: Sequence[str], wanted: Sequence[str]) -> np.ndarray | None:
    """The intervals of the items `wanted`, [M, 2]; `ids` [N] are those of this catalogue.

    Other items are always there. None: so are all.
    """
    if not self.changes:
      return None
    place = pd.Index(ids).get_indexer(pd.Index(wanted))
    return np.where((place < 0)[:, np.newaxis], [-np.inf, np.inf], self.interval[place])


def there_are(interval: tf.Tensor, time: tf.Tensor) -> tf.Tensor:
  """Which items [N, 2], or each row's own [B, N, 2], there are at times [B, 1]: [B, N] bool."""
  return (interval[..., 0] <= time) & (time < interval[..., 1])


def check_same(one: Catalogues | None, other: Catalogues | None) -> None:
  """Raises InputError if rows of two logs would name their sets by different numbers."""
  if one is not other:
    raise InputError(
      "rows of two logs whose items come and go, or that have candidates, cannot be joined; make"
      " one BanditLog of all rows and split it"
    )
