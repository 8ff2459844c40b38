"""An approximate index of item vectors: a query visits the items of its best cells alone.

It is an inverted file with full vectors, of TensorFlow's own operations: a stock server loads it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.models.two_stage import PADDING

_ROWS_PER_CELL = 64  # that k-means reads


class Cells(tf.Module):
  """Items in cells of equal width, by k-means; a larger cluster fills several.

  Attributes:
    items: [cells, width] int32, padded.
    probes: how many cells a query visits.
  """

  def __init__(self, vectors: np.ndarray, num_cells: int, probes: int, seed: int = 0):
    """Args:
    vectors: [N, D] float32.
    num_cells: clusters.
    probes: cells that a query visits.
    seed: of k-means.
    """
    super().__init__()
    if not 2 <= num_cells <= len(vectors):
      raise InputError(
        f"index_cells must lie between 2 and the {len(vectors)} items, got {num_cells}; about the"
        " square root of their number is usual"
      )
    items = _in_cells(vectors, _clusters(vectors, num_cells, seed), -(-len(vectors) // num_cells))
    if not 1 <= probes <= len(items):
      raise InputError(f"index_probes must lie between 1 and the {len(items)} cells, got {probes}")
    present = (items != PADDING)[:, :, np.newaxis]
    placed = np.where(present, vectors[items], 0)
    centers = placed.sum(axis=1) / present.sum(axis=1, dtype=np.float32)
    self.probes = probes
    self._centers = tf.Variable(centers.T, trainable=False)
    self.items = tf.Variable(items, trainable=False)
    self._vectors = tf.Variable(placed, trainable=False)

  def __call__(self, users: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The items of the best cells of users [B, D], unordered, and their products with the users.

    Returns:
      ids int32 and scores, [B, M] each; places without an item have id -1 and score -inf.
    """
    best = tf.math.top_k(tf.matmul(users, self._centers), self.probes, sorted=False).indices
    shape = [tf.shape(users)[0], self.probes * self.items.shape[1]]
    ids = tf.reshape(tf.gather(self.items, best), shape)
    vectors = tf.reshape(tf.gather(self._vectors, best), [*shape, self._vectors.shape[2]])
    scores = tf.linalg.matvec(vectors, users)
    return ids, tf.where(ids == PADDING, tf.constant(-np.inf, scores.dtype), scores)


def _clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The cluster of each vector, [N]."""
  from sklearn.cluster import MiniBatchKMeans  # takes seconds

  few = min(len(vectors), _ROWS_PER_CELL * count)
  chosen = np.random.default_rng(seed).choice(len(vectors), few, replace=False)
  found = MiniBatchKMeans(count, batch_size=4096, n_init=1, random_state=seed)
  return found.fit(vectors[chosen]).predict(vectors)


def _in_cells(vectors: np.ndarray, cluster: np.ndarray, width: int) -> np.ndarray:
  """Items of cells [cells, width], padded: each cluster in cells of its own.

  Within a cluster the longest vectors come first, so that they share a cell: it is visited when
  others of the cluster are not, as long vectors have the largest products.
  """
  order = np.lexsort([-np.linalg.norm(vectors, axis=1), cluster])
  sizes = np.bincount(cluster)
  cells = -(-sizes // width)
  rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  first = np.repeat(np.cumsum(cells) - cells, sizes)
  items = np.full((cells.sum(), width), PADDING, np.int32)
  items[first + rank // width, rank % width] = order
  return items
