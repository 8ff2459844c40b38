"""Ranking metrics on hits: whether the item at each rank is relevant to the user.

All functions take one row for each user, and return one number for each; `summarise` averages them.
Ranks beyond a short list, and padding, count as misses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_twostage.errors import InputError, require


def hits_from_ids(ids: np.ndarray, relevance: np.ndarray) -> np.ndarray:
  """Whether recommended items are relevant: [U, L] bool; padding is False.

  Args:
    ids: [U, L] int, catalogue indices from the best rank down; -1 is padding.
    relevance: [U, N] bool, whether an item is relevant to a user.
  """
  ids, relevance = np.asarray(ids), np.asarray(relevance)
  if ids.ndim != 2 or relevance.ndim != 2 or len(ids) != len(relevance):
    raise InputError(f"ids [U, L] and relevance [U, N] do not fit: {ids.shape}, {relevance.shape}")
  if ids.dtype.kind not in "iu" or relevance.dtype != np.bool_:
    raise InputError(f"ids must be int and relevance bool, got {ids.dtype} and {relevance.dtype}")
  num_items = relevance.shape[1]
  inside = (ids >= -1) & (ids < num_items)
  rule = f"must be below {num_items}, the size of the catalogue"
  require(inside.ravel(), "ids", rule, "pad with -1", ids.ravel(), unit="id")
  ordered = np.sort(ids, axis=1)
  repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
  require(~repeats, "ids", "must not repeat for a user", "rank distinct items")
  # Padding reads column 0 and is then masked.
  return np.take_along_axis(relevance, np.maximum(ids, 0), axis=1) & (ids >= 0)


def metrics_at_k(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> dict[str, np.ndarray]:
  """Precision, recall and NDCG of the top k, [U] each; NaN where a user has no relevant item.

  Precision: hits in the top k / k, also where a list is shorter. Recall: hits in the top k /
  relevant items. NDCG: DCG = Σ_l hit_l / log2(l + 1) over ranks l = 1..k, over that of the ideal
  list, which has min(k, relevant) hits in front.

  Args:
    hits: [U, L] bool, from the best rank down.
    num_relevant: [U] int, relevant items in the catalogue.
    k: number of ranks, >= 1.

  References:
    Järvelin, Kekäläinen. Cumulated gain-based evaluation of IR techniques. ACM TOIS 20 (2002).
  """
  if k < 1:
    raise InputError(f"k must be at least 1, got {k}")
  hits, counts = np.asarray(hits), np.asarray(num_relevant)
  if hits.ndim != 2 or hits.dtype != np.bool_:
    raise InputError(f"hits must be [U, L] bool, got {hits.dtype} of shape {hits.shape}")
  if counts.shape != hits.shape[:1] or counts.dtype.kind not in "iu":
    raise InputError(
      f"num_relevant must be [{len(hits)}] int, got {counts.dtype} of shape {counts.shape}"
    )
  enough, remedy = hits.sum(axis=1) <= counts, "count relevant items over the whole catalogue"
  require(enough, "num_relevant", "must not be below the number of hits", remedy, counts)
  top = hits[:, :k]
  found = top.sum(axis=1)
  discounts = 1 / np.log2(np.arange(2, k + 2))
  ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(counts, k)]

  def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)

  return {
    "precision": found / k,
    "recall": ratio(found, counts),
    "ndcg": ratio(top @ discounts[: top.shape[1]], ideal),
  }


def summarise(
  hits: np.ndarray, num_relevant: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
  """Averages "precision@k", "recall@k" and "ndcg@k" over the users who have a relevant item."""
  kept = np.asarray(num_relevant) > 0
  if not kept.any():
    raise InputError(f"none of {len(kept)} users has a relevant item: nothing to average")
  by_cutoff = {k: metrics_at_k(hits, num_relevant, k) for k in ks}
  return {
    f"{name}@{k}": float(by_cutoff[k][name][kept].mean())
    for name in ("precision", "recall", "ndcg")
    for k in ks
  }
