"""Labels of every user-item pair, from a fitted simulator."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import Numeric
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.simulator import Simulator
from tf_twostage.training.progress import progress_bar

_PAIRS_PER_CHUNK = 32_768  # hidden units of a chunk (13 MB) stay near the cache


@dataclasses.dataclass(frozen=True)
class FullInformation:
  """Labels of all pairs of users and items, [U, N] bool each, by a threshold of the probability."""

  labels: np.ndarray  # in a context drawn for each pair; the rewards of the log
  relevance: np.ndarray  # in the user's mean context; evaluation uses these
  threshold: float = np.nan  # of the simulator's probability

  def rewards(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Labels of the pairs (users[i], items[i]), [n] float32."""
    return self.labels[users, items].astype(np.float32)

  def save(self, path: pathlib.Path) -> None:
    """Writes an .npz with bit-packed labels (3 MB each for MovieLens-1M)."""
    np.savez(
      path,
      labels=np.packbits(self.labels, axis=1),
      relevance=np.packbits(self.relevance, axis=1),
      num_items=self.labels.shape[1],
      threshold=self.threshold,
    )

  @classmethod
  def load(cls, path: pathlib.Path) -> FullInformation:
    with np.load(path) as stored:
      num_items = int(stored["num_items"])
      return cls(
        labels=unpack_pairs(stored["labels"], num_items),
        relevance=unpack_pairs(stored["relevance"], num_items),
        threshold=float(stored["threshold"]),
      )


def unpack_pairs(packed: np.ndarray, num_items: int) -> np.ndarray:
  """[U, N] bool from the bytes [U, ceil(N / 8)] of np.packbits."""
  return np.unpackbits(packed, axis=1, count=num_items).astype(bool)


class PairContexts:
  """A context for every pair: one of the user's rating contexts, chosen by a hash.

  Unlike a random stream, a hash gives the context of any pair without drawing all others.
  """

  def __init__(self, data: RatingsData, seed: int):
    self._context = data.context
    self._by_user = np.argsort(data.user_index, kind="stable")
    self._count = np.bincount(data.user_index, minlength=data.num_users)
    self._start = np.cumsum(self._count) - self._count
    self.num_users, self.num_items = data.num_users, data.num_items
    self._seed = seed

  def rows(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Rows of ratings whose context the pairs take; users without ratings take any row."""
    pair = np.uint64(self.num_items) * users.astype(np.uint64) + items.astype(np.uint64)
    count = self._count[users]
    own = self._start[users] + _hash(pair, self._seed) % np.maximum(count, 1).astype(np.uint64)
    borrowed = _hash(pair, self._seed) % np.uint64(len(self._by_user))
    return self._by_user[np.where(count > 0, own, borrowed).astype(np.int64)]

  def __call__(self, users: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
    """Raw context values of the pairs, in the shape of `users` broadcast with `items`."""
    rows = self.rows(users, items)
    return {name: values[rows] for name, values in self._context.items()}

  def mean(self) -> dict[str, np.ndarray]:
    """Each user's mean context, [U]; the mean of all ratings for users without any."""
    means = {}
    for name, values in self._context.items():
      own = values[self._by_user]
      sums = np.bincount(np.repeat(np.arange(len(self._count)), self._count), own, len(self._count))
      means[name] = np.where(self._count > 0, sums / np.maximum(self._count, 1), values.mean())
    return means


def label_all_pairs(
  simulator: Simulator, contexts: PairContexts, tables: EncodedTables, positive_rate: float
) -> FullInformation:
  """Labels all U x N pairs in a drawn and in the mean context, both cut at one threshold.

  The threshold makes this share of the labels in drawn contexts positive.
  """
  assert all(isinstance(f, Numeric) for f in tables.schema.context)
  num_users, num_items = contexts.num_users, contexts.num_items
  mean_context = contexts.mean()
  user_part, item_part = simulator.user_part(tables.users), simulator.item_part(tables.items)

  @tf.function(reduce_retracing=True)
  def score(users, *contexts):
    pairs = users[:, tf.newaxis] + item_part
    parts = (simulator.context_part(tables.context_lookup(context)) for context in contexts)
    return [simulator.pair_logits(pairs + part) for part in parts]

  label_logits = np.empty((num_users, num_items), np.float32)
  relevance_logits = np.empty_like(label_logits)
  users_per_chunk = max(1, _PAIRS_PER_CHUNK // num_items)
  with progress_bar("labels", num_users * num_items, unit="pair") as progress:
    for start in range(0, num_users, users_per_chunk):
      users = np.arange(start, min(start + users_per_chunk, num_users))
      drawn = contexts(users[:, np.newaxis], np.arange(num_items))
      mean = {name: values[users, np.newaxis] for name, values in mean_context.items()}
      label_logits[users], relevance_logits[users] = score(
        user_part[start : users[-1] + 1], drawn, mean
      )
      progress.update(users.size * num_items)

  threshold = np.quantile(label_logits, 1 - positive_rate)
  return FullInformation(
    labels=label_logits >= threshold,
    relevance=relevance_logits >= threshold,
    threshold=float(1 / (1 + np.exp(-threshold))),
  )


def _hash(values: np.ndarray, seed: int) -> np.ndarray:
  """SplitMix64: 64 well-mixed bits from a counter and a seed."""
  with np.errstate(over="ignore"):
    x = values + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
