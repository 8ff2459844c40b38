"""A sampled support: the items that replace a large catalogue in one training step."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.replicas import all_rows
from tf_twostage.losses.sampled_catalogue import Draws, Support, sample_support
from tf_twostage.models.encoders import TwoTower

_USERS = 128  # users of a batch that determine the hard candidates
_ITEMS_PER_CHUNK = 2**14  # 16 MB of logits


def check_hard_candidates(count: int, num_items: int) -> None:
  """Refuses more hard candidates than there are items."""
  if not 0 <= count <= num_items:
    raise InputError(
      f"hard_candidates is {count}, but the catalogue has {num_items} items: pick a number up to"
      " that"
    )


class SampledSupport(tf.keras.layers.Layer):
  """Logged items, hard candidates and draws; a function of seed and step.

  Hard candidates are the items with the highest mean probability over users of a batch, under the
  current policy: the largest terms of the softmax's denominator are exact instead of sampled. They
  are refreshed every so many steps, and saved in the model's checkpoints, so a resumed run has
  those of an uninterrupted one.
  """

  def __init__(
    self,
    draws: Draws,
    *,
    num_items: int,
    size: int,
    seed: int,
    hard_candidates: int = 0,
    hard_refresh_steps: int = 100,
  ):
    """Args:
    draws: distribution of the draws, see `losses.DRAWS`.
    num_items: N.
    size: S, larger than batch and hard candidates together.
    seed: determines the draws, together with the step.
    hard_candidates: number of hard candidates, at most N.
    hard_refresh_steps: steps between refreshes of the hard candidates. A refresh costs two
      products of some users with the whole catalogue.
    """
    super().__init__(name="support")
    check_hard_candidates(hard_candidates, num_items)
    self._draws = draws
    self._num_items = num_items
    self._size = size
    self._seed = seed
    self._refresh_steps = hard_refresh_steps
    self._hard = None
    if hard_candidates:
      self._hard = self.add_weight(
        name="hard_candidates",
        shape=[hard_candidates],
        dtype=tf.int32,
        initializer="zeros",
        trainable=False,
        # All replicas compute the same value.
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
      )

  def call(
    self, actions: tf.Tensor, query: tf.Tensor, towers: TwoTower, step: tf.Tensor
  ) -> Support:
    """The support of a step, for logged items [B] and user vectors [B, D]."""
    step = tf.cast(step, tf.int64)
    seed = tf.stack([tf.constant(self._seed, tf.int64), step])
    hard = None
    if self._hard is not None:
      hard = self._chosen(self._hard, query, towers, step)
    return sample_support(actions, self._draws, size=self._size, seed=seed, hard=hard)

  def _chosen(
    self, hard: tf.Variable, query: tf.Tensor, towers: TwoTower, step: tf.Tensor
  ) -> tf.Tensor:
    users = all_rows(tf.stop_gradient(query))[:_USERS]

    def choose() -> tf.Tensor:
      chosen = most_probable(users, towers, self._num_items, hard.shape[0])
      hard.assign(chosen)
      return chosen

    return tf.cond(step % self._refresh_steps == 0, choose, lambda: tf.identity(hard))


def most_probable(users: tf.Tensor, towers: TwoTower, num_items: int, count: int) -> tf.Tensor:
  """The `count` items with the highest mean probability under softmax(users . items), best first.

  The towers score the items in chunks, so that no [U, N] tensor exists; users are [U, D].
  """
  width = min(num_items, _ITEMS_PER_CHUNK)
  starts = tf.range(0, num_items, width)

  def logits(start: tf.Tensor) -> tf.Tensor:
    items = start + tf.range(width)
    vectors = towers.candidates(tf.minimum(items, num_items - 1))
    scores = tf.cast(tf.matmul(users, vectors, transpose_b=True), tf.float32)
    return tf.where(items < num_items, scores, -float("inf"))

  def in_chunks(function, shape) -> tf.Tensor:
    return tf.map_fn(function, starts, fn_output_signature=tf.TensorSpec(shape, tf.float32))

  log_sums = in_chunks(lambda start: tf.reduce_logsumexp(logits(start), 1), [users.shape[0]])
  log_sum = tf.reduce_logsumexp(log_sums, 0)[:, tf.newaxis]
  means = in_chunks(lambda start: tf.reduce_mean(tf.exp(logits(start) - log_sum), 0), [width])
  return tf.math.top_k(tf.reshape(means, [-1])[:num_items], count).indices
