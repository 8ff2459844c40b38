"""The ranker of an export: scores the items of a slate."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from tf_twostage.data.schema import FeatureTable
from tf_twostage.models.encoders import Codes, Towers


class SlateRanker(Protocol):
  """Ranks the candidates of an export; a `tf.Module` that holds its variables."""

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    """Scores [B, K] of catalogue indices `slate` [B, K], for raw features and the same as codes."""
    ...


class TowerRanker(tf.Module):
  """Products of user vectors and fixed item vectors, times a factor."""

  def __init__(self, towers: Towers, scale: float = 1.0):
    super().__init__()
    # A lambda hides the Keras layers from the SavedModel, which keeps their variables only.
    self._towers = lambda: towers
    self._query = towers.query
    self._weights = [*towers.variables]
    self.scale = scale
    self._items = tf.Variable(scale * towers.candidates(), trainable=False)

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    return tf.linalg.matvec(tf.gather(self._items, slate), self._query(codes))

  @property
  def towers(self) -> Towers:
    """The towers that this ranker was made of."""
    return self._towers()

  def products(self, codes: Codes) -> tf.Tensor:
    """Scores of the catalogue, [B, N]."""
    return tf.matmul(self._query(codes), self._items, transpose_b=True)


class PrecomputedTowers(tf.Module):
  """Towers fitted elsewhere, of which only the vectors of users [U, D] and items [N, D] are known.

  They are in the order of the vocabularies; `user_id` is the name of the id among the codes.
  """

  def __init__(self, user_id: str, user_vectors: np.ndarray, item_vectors: np.ndarray):
    super().__init__()
    self._user_id = user_id
    unknown = np.zeros_like(user_vectors[:1])  # code 0
    self._users = tf.Variable(np.concatenate([unknown, user_vectors]), trainable=False)
    self._items = tf.Variable(item_vectors, trainable=False)

  def query(self, user: Codes) -> tf.Tensor:
    """User vectors [B, D]; zeros for users outside the vocabulary."""
    return tf.gather(self._users, user[self._user_id])

  def candidates(self) -> tf.Tensor:
    """Item vectors [N, D]."""
    return tf.convert_to_tensor(self._items)


def catalogue_scores(
  ranker: SlateRanker, raw: FeatureTable, codes: Codes, rows: tf.Tensor, num_items: int
) -> tf.Tensor:
  """Scores [B, N] of all items for B rows, as if the catalogue were the slate."""
  if isinstance(ranker, TowerRanker):
    return ranker.products(codes)  # without a copy of all items for each row
  return ranker(raw, codes, tf.tile(tf.range(num_items)[tf.newaxis], [rows, 1]))
