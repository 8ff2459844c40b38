"""Towers fitted elsewhere, of which only the vectors are known."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.models.encoders import Codes


class PrecomputedTowers(tf.Module):
  """Vectors of users and items; replaces a fitted `TwoTower` in an export."""

  def __init__(self, user_id: str, user_vectors: np.ndarray, item_vectors: np.ndarray):
    """Args:
    user_id: name of the user id among the codes.
    user_vectors: [U, D], in the order of the users' vocabulary.
    item_vectors: [N, D], in the order of the catalogue.
    """
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
