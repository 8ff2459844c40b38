"""A list of vectors, such as of the last items of a user, as one vector."""

from __future__ import annotations

import tensorflow as tf


class SequenceEncoder(tf.keras.layers.Layer):
  """The mean of the vectors, the last state of a GRU, or what attention makes of the newest one.

  The attention is one block of a transformer (Kang and McAuley, Self-Attentive Sequential
  Recommendation, ICDM 2018): attention and a layer with ReLU, each added to its input, with learned
  positions that count from the newest vector. Only the newest vector's output is read, so only that
  is computed. The GRU is the user's state of Chen et al., WSDM 2019. Without vectors all are zero.
  """

  def __init__(
    self,
    kind: str,
    width: int,
    length: int,
    stddev: float,
    regularizer: tf.keras.regularizers.Regularizer | None,
    **kwargs,
  ):
    """Args:
    kind: "mean", "gru" or "attention".
    width: D, of the vectors and of the result.
    length: L, the most vectors that are read.
    stddev: positions start as N(0, stddev^2).
    regularizer: of all matrices.
    """
    super().__init__(**kwargs)
    self._kind = kind
    layers = tf.keras.layers
    if kind == "gru":
      self._gru = layers.GRU(
        width, kernel_regularizer=regularizer, recurrent_regularizer=regularizer
      )
    elif kind == "attention":
      penalized = {"kernel_regularizer": regularizer}
      self._positions = self.add_weight(
        name="positions",
        shape=[length, width],
        initializer=tf.keras.initializers.RandomNormal(stddev=stddev),
        regularizer=regularizer,
      )
      self._attention = layers.MultiHeadAttention(1, width, **penalized)
      self._hidden = layers.Dense(width, "relu", **penalized)
      self._output = layers.Dense(width, **penalized)

  def call(self, vectors: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Vectors [B, L, D], newest last, of which some are `present` [B, L] bool; returns [B, D]."""
    if self._kind == "gru":
      return self._gru(vectors, mask=present)
    if self._kind == "attention":
      vectors += self._positions[-tf.shape(vectors)[1] :]
      newest = vectors[:, -1:]
      state = newest + self._attention(newest, vectors, attention_mask=present[:, tf.newaxis])
      state = (state + self._output(self._hidden(state)))[:, 0]
      return tf.where(present[:, -1:], state, 0.0)
    weights = tf.cast(present, tf.float32)[..., tf.newaxis]
    return tf.math.divide_no_nan(tf.reduce_sum(vectors * weights, 1), tf.reduce_sum(weights, 1))
