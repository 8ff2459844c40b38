"""An inverted index that finds the items whose matched weights reach a threshold.

MaxScore, a form of WAND: terms that even together cannot reach the threshold are not walked
through. They only complete the scores of items that the others found, and that can still reach it.

References:
  Broder, Carmel, Herscovici, Soffer, Zien. Efficient query evaluation using a two-level retrieval
    process. CIKM 2003 (WAND).
  Turtle, Flood. Query evaluation: strategies and optimizations. IP&M 31 (1995) (MaxScore).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse

_ROUNDING = 1 + 1e-9  # sums in another order must not fall short of an upper bound


class Found(NamedTuple):
  """Items and their scores, [n] each, best first; and how many entries of the index were read."""

  items: np.ndarray
  scores: np.ndarray
  touched: int


class InvertedIndex:
  """Postings of T terms over N items."""

  def __init__(self, items: np.ndarray | scipy.sparse.csr_array):
    """items: [N, T], 1 where an item meets a term."""
    self._items = scipy.sparse.csr_array(items, dtype=np.float64)
    self._postings = self._items.T.tocsr()

  def search(self, query: np.ndarray, threshold: float, k: int | None = None) -> Found:
    """The items with scores of at least `threshold`, which is above 0.

    Args:
      query: [T] >= 0, the weight of each term.
      threshold: items without a matched term are never found.
      k: the best k of them; None: all.
    """
    terms = np.flatnonzero(query)
    terms = terms[np.argsort(query[terms], kind="stable")]
    # The first terms, whose weights add up to less than the threshold.
    weak = int(np.searchsorted(np.cumsum(query[terms]), threshold))
    lists = self._postings[terms[weak:]]
    weights = np.repeat(query[terms[weak:]], np.diff(lists.indptr))
    sums = np.bincount(lists.indices, weights, minlength=self._items.shape[0])
    rest = np.zeros(len(query))
    rest[terms[:weak]] = query[terms[:weak]]
    items = np.flatnonzero((sums > 0) & (sums + rest.sum() * _ROUNDING >= threshold))
    scores, touched = sums[items], lists.nnz
    if weak:
      rows = self._items[items]
      scores = scores + rows @ rest
      touched += int((rows @ (rest > 0)).sum())
    passed = scores >= threshold
    items, scores = items[passed], scores[passed]
    order = np.lexsort([items, -scores])[:k]
    return Found(items[order], scores[order], touched)
