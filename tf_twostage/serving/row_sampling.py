"""Draws whose randomness comes with each row, not with the batch.

A server may put rows of several requests into one batch, in any order. Each row therefore brings
its own seed, and what is drawn for it depends on nothing else. TensorFlow's stateless draws take
one seed for all rows.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# NumPy's, because TensorFlow takes large Python integers through float64 in places.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: tf.Tensor, count: int) -> tf.Tensor:
  """Uniform numbers in [0, 1) with 52 random bits: SplitMix64 on a hash of the seed.

  Args:
    seeds: [B] int64.
    count: how many a row.

  Returns:
    [B, count] float64.
  """
  start = _mix(tf.bitcast(seeds, tf.uint64) * _GOLDEN)
  bits = _mix(start[:, tf.newaxis] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
  return tf.cast(_shifted(bits, 12), tf.float64) * 2.0**-52


def draws(logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """Draws from softmax(logits) with replacement, by inverting the distribution function.

  Args:
    logits: [B, N] floating; -inf excludes, and each row has one that is finite.
    uniform: [B, count] float64 in [0, 1 - 2**-52].

  Returns:
    [B, count] int32 in [0, N), never one that is excluded.
  """
  weights = tf.exp(logits - tf.reduce_max(logits, 1, keepdims=True))
  # Sums of a million weights in float32 would move the probability of a rare item by percents.
  sums = tf.cumsum(tf.cast(weights, tf.float64), 1)
  # The first sum above the point has a weight above 0. Points stay below the total: 2**-52 of it
  # is at least its last binary place.
  return tf.searchsorted(sums, uniform * sums[:, -1:], side="right")


def _mix(x: tf.Tensor) -> tf.Tensor:
  x = tf.bitwise.bitwise_xor(x, _shifted(x, 30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = tf.bitwise.bitwise_xor(x, _shifted(x, 27)) * np.uint64(0x94D049BB133111EB)
  return tf.bitwise.bitwise_xor(x, _shifted(x, 31))


def _shifted(x: tf.Tensor, bits: int) -> tf.Tensor:
  return tf.bitwise.right_shift(x, np.uint64(bits))
