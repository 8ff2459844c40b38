"""The ranker of an export: scores the items of a slate."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tf_twostage.data.schema import FeatureTable
from tf_twostage.models.encoders import Codes, Towers


class SlateRanker(Protocol):
  """Ranks the candidates of an export; a `tf.Module` that holds its variables."""

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

  def __init__(self, towers: Towers):
    super().__init__()
    # A lambda hides the Keras layers from the SavedModel, which keeps their variables only.
    self._towers = lambda: towers
    self._query = towers.query
    self._weights = [*towers.variables]
    self._items = tf.Variable(towers.candidates(), trainable=False)

  def __call__(self, raw: FeatureTable, codes: Codes, slate: tf.Tensor) -> tf.Tensor:
    return tf.linalg.matvec(tf.gather(self._items, slate), self._query(codes))

  @property
  def towers(self) -> Towers:
    """The towers that this ranker was made of."""
    return self._towers()

  def products(self, codes: Codes) -> tf.Tensor:
    """Scores of the catalogue, [B, N]."""
    return tf.matmul(self._query(codes), self._items, transpose_b=True)


def catalogue_scores(
  ranker: SlateRanker, raw: FeatureTable, codes: Codes, rows: tf.Tensor, num_items: int
) -> tf.Tensor:
  """Scores of all items, as if the catalogue were the slate.

  Args:
    ranker, raw, codes: as for `SlateRanker`.
    rows: B.
    num_items: N.

  Returns:
    [B, N].
  """
  if isinstance(ranker, TowerRanker):
    return ranker.products(codes)  # without a copy of all items for each row
  return ranker(raw, codes, tf.tile(tf.range(num_items)[tf.newaxis], [rows, 1]))
