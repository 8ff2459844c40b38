"""A candidate generator that scores items by a weighted AND query, filled with a user's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.casmos.clauses import Clause, Query
from tf_twostage.casmos.terms import Term, TermMatcher
from tf_twostage.models.encoders import Codes, EncodedTables

# Logits of items below the threshold are this much lower: their share of the policy is below 1e-9,
# and they fill up the candidates of a user for whom too few items pass.
BELOW = 30.0
_ITEMS_PER_CALL = 4096
_ROWS_PER_CALL = 1024


class LoggedRows(NamedTuple):
  """Rewarded rows that choose the threshold: codes of users, items [m] and weights [m]."""

  user: Codes
  item: np.ndarray
  weight: np.ndarray


class StructuredQueries(tf.keras.layers.Layer):
  """Scores are sums of the weights of matched clauses, with the interface of `TwoTower`.

  A user's vector is the query: the weight of each item term, for the clauses whose user terms the
  user meets. An item's vector says which of the terms it meets. Weights stay at 0 or above.
  """

  def __init__(
    self,
    tables: EncodedTables,
    query: Query,
    *,
    rows: LoggedRows | None = None,
    recall: float = 0.95,
    trainable: bool = True,
    **kwargs,
  ):
    """Args:
    tables: the schema and the catalogue.
    query: clauses, their first weights, and the threshold; without one it is chosen by `rows`.
    rows: read by `choose_threshold`.
    recall: weighted share of `rows` that reach the threshold.
    trainable: whether the weights are learned further.
    """
    super().__init__(**kwargs)
    self.clauses, self._rows, self._recall = query.clauses, rows, recall
    self._fixed_threshold = query.threshold is not None
    users, items = (terms_of(query.clauses, side) for side in ("user", "item"))
    place = [{term: i for i, term in enumerate(terms)} for terms in (users, items)]
    pairs = [[place[0][c.user], place[1][c.item]] for c in query.clauses]
    self._pairs, self._shape = tf.constant(pairs), (len(users), len(items))
    self._users = TermMatcher(tables.schema.user_inputs, users)
    self._item_terms = TermMatcher(tables.schema.item_inputs, items)
    self._items = self.new_candidates(tables.items)
    self._weights = self.add_weight(
      name="weights",
      shape=[len(pairs)],
      initializer=tf.constant_initializer([c.weight for c in query.clauses]),
      constraint=tf.keras.constraints.NonNeg(),
      trainable=trainable,
    )
    self._threshold = self.add_weight(
      name="threshold",
      shape=[],
      initializer=tf.constant_initializer(query.threshold if self._fixed_threshold else -np.inf),
      trainable=False,
    )

  def query(self, user: Codes, training: bool = False) -> tf.Tensor:
    """Weights of the item terms, [B, T]."""
    weights = tf.scatter_nd(self._pairs, self._weights, self._shape)
    return tf.matmul(self._users(user), weights)

  def candidates(self, actions: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
    """Which terms the items of the catalogue meet, or `actions` [B]: ones in [N, T] or [B, T]."""
    return self._items if actions is None else tf.gather(self._items, actions)

  def new_candidates(self, items: Codes) -> tf.Tensor:
    """Which terms items from outside the catalogue meet, by their codes: [M, T]."""
    rows = len(next(iter(items.values())))
    parts = [
      self._item_terms({n: v[start : start + _ITEMS_PER_CALL] for n, v in items.items()})
      for start in range(0, rows, _ITEMS_PER_CALL)
    ]
    return tf.concat(parts, axis=0)

  def touched_penalty(self, user: Codes, actions: tf.Tensor | None = None) -> tf.Tensor:
    """0: there are no embeddings."""
    return tf.constant(0.0)

  def call(self, user: Codes) -> tf.Tensor:
    """Logits over the catalogue, [B, N]."""
    return self.passing(tf.matmul(self.query(user), self.candidates(), transpose_b=True))

  def passing(self, scores: tf.Tensor) -> tf.Tensor:
    """Scores as logits: those below the threshold are lowered by `BELOW`."""
    return scores - BELOW * tf.cast(scores < self._threshold, scores.dtype)

  def choose_threshold(self) -> None:
    """Raises the threshold as far as the rows allow."""
    if self._rows is None or self._fixed_threshold:
      return
    user, item, weight = self._rows
    scores = []
    for start in range(0, len(item), _ROWS_PER_CALL):
      some = slice(start, start + _ROWS_PER_CALL)
      query = self.query({name: codes[some] for name, codes in user.items()})
      scores.append(tf.reduce_sum(query * self.candidates(item[some]), axis=1).numpy())
    order = np.argsort(-np.concatenate(scores), kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    lowest = np.concatenate(scores)[order][np.searchsorted(reached, self._recall)]
    # Sums of the same weights in another order round differently.
    self._threshold.assign(lowest - 1e-5 * (1 + abs(lowest)))

  def current(self) -> Query:
    """The clauses with their weights of now; those of weight 0 are left out."""
    threshold = float(self._threshold.numpy())
    weights = self._weights.numpy().tolist()
    kept = tuple(
      Clause(c.user, c.item, weight)
      for c, weight in zip(self.clauses, weights, strict=True)
      if weight > 0
    )
    return Query(kept, threshold if np.isfinite(threshold) else None)

  def contributions(self, user: Codes, items: tf.Tensor) -> tf.Tensor:
    """What each clause adds to the score of one item a user: [B, C] for item vectors [B, T]."""
    met = tf.gather(self._users(user), self._pairs[:, 0], axis=1)
    return met * tf.gather(items, self._pairs[:, 1], axis=1) * self._weights


def terms_of(clauses: Sequence[Clause], side: str) -> list[Term]:
  """The terms of one side in the order of their first clauses."""
  return [*{getattr(clause, side): None for clause in clauses}]
