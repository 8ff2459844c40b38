"""The global batch of one replica; that of two is in losses/test_distribution.py."""

import numpy as np
import tensorflow as tf

from tf_twostage.losses.replicas import all_rows, batch_sum, num_replicas


def test_batch_sum_is_the_sum_and_the_number_of_rows():
  total, rows = batch_sum(tf.constant([1.0, 2.5, -0.5]))
  assert (total.numpy(), rows.numpy()) == (3.0, 3.0)
  assert rows.dtype == tf.float32
  assert [t.numpy() for t in batch_sum(tf.zeros([0], tf.float64))] == [0.0, 0.0]


def test_one_replica_has_all_rows():
  rows = tf.constant([[3, 1], [2, 0]])
  assert num_replicas() == 1
  np.testing.assert_array_equal(all_rows(rows), rows)
