"""The second stage where it is served: scores of the few items of a slate."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tf_twostage.models.encoders import Codes, TwoTower
from tf_twostage.models.stored import StoredTowers
from tf_twostage.schema import FeatureTable


class SlateRanker(Protocol):
  """What an export ranks candidates with; a `tf.Module` that holds all it needs."""

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    """Scores of each user's slate.

    Args:
      raw: raw user and context features, [B, ...] each.
      codes: the same as codes.
      slate: [B, K] catalogue indices.

    Returns:
      [B, K].
    """
    ...


class TowerRanker(tf.Module):
  """Products of user vectors and fixed item vectors."""

  def __init__(self, towers: TwoTower | StoredTowers):
    super().__init__()
    # A SavedModel keeps the towers' variables, not the Keras layers around them.
    self._query = towers.query
    self._weights = [*towers.variables]
    self._items = tf.Variable(towers.candidates(), trainable=False)

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    return tf.linalg.matvec(tf.gather(self._items, slate), self._query(codes))
