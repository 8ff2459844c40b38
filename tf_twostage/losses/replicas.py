"""The global batch: the rows of all replicas. With one replica it is what was passed."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def num_replicas() -> int:
  """How many replicas take a step together."""
  return tf.distribute.get_strategy().num_replicas_in_sync


def all_rows(values: tf.Tensor) -> tf.Tensor:
  """The rows of the global batch, in the order of the replicas.

  Args:
    values: [B, ...], this replica's rows; as many as every other replica's.

  Returns:
    [B * replicas, ...], the same in every replica.
  """

  def gathered(context: tf.distribute.ReplicaContext) -> tf.Tensor:
    # Several processes need a tensor on a device; a batch from a pipeline is on none.
    rows = context.all_gather(tf.identity(values), axis=0)
    if rows.shape.is_fully_defined() or not values.shape.is_fully_defined():
      return rows
    size, *width = values.shape  # all_gather loses the static shape
    return tf.reshape(rows, [size * context.num_replicas_in_sync, *width])

  return _across_replicas(values, gathered)


def batch_sum(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Sum and number of rows of the global batch: two scalars, differentiable across replicas.

  Args:
    values: [B], this replica's rows.
  """
  sums = tf.stack([tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype)])
  add = tf.distribute.ReduceOp.SUM
  sums = _across_replicas(sums, lambda context: context.all_reduce(add, sums))
  return sums[0], sums[1]


def _across_replicas(
  alone: tf.Tensor, together: Callable[[tf.distribute.ReplicaContext], tf.Tensor]
) -> tf.Tensor:
  replica = tf.distribute.get_replica_context()
  if replica is None or replica.num_replicas_in_sync == 1:
    return alone
  return together(replica)
