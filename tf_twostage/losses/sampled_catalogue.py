"""A shared part of a large catalogue in place of the whole: every loss, at the cost of the part.

  support, log_q = draw_support(actions, num_items=N, size=S)
  logits = ...  # [B, S], scores of the items of `support` alone
  logits, positions = on_support(logits, support, log_q, actions)
  loss(logits, positions, propensities, rewards, ranker_logits_of_the_support)

An item that is in the support with probability Q stands for 1/Q items like itself. Its logit gets
-log Q, so that the softmax's denominator Σ exp(logit - log Q) has the expectation of the full one
(Horvitz-Thompson). Q = 1 for the logged items of the batch leaves their numerators as they are.

What is biased: not the denominator, but what is not linear in it. E[log of the sum] lies below the
log of the full sum and E[1 / sum] above its inverse (Jensen), so that probabilities, and with them
importance weights, come out too large and cross-entropy too small, by about half the squared
relative standard error of the sum, which falls like 1/S. The same holds for slates, the two-stage
policy and direct estimates: means under the generator become ratios of such sums. Monte Carlo
2-IPS draws from softmax(logits / temperature): its correction is right at temperature 1 alone.
"""

from __future__ import annotations

import tensorflow as tf


def draw_support(
  actions: tf.Tensor, *, num_items: int, size: int, seed: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
  """All items logged in a batch, filled up with others, uniformly without replacement.

  Args:
    actions: [B] integer, catalogue indices.
    num_items: N.
    size: S, at most N; at least the number of distinct actions, so B is always enough.
    seed: operation seed, see `tf.random.set_seed`.

  Returns:
    support [S] int32, distinct catalogue indices, ascending; and log Q [S] float32, the logarithm
    of the probability to be in it, the batch given: 0 for the actions.

  Raises:
    tf.errors.InvalidArgumentError: more distinct actions than `size`, or size above N.
  """
  actions = tf.cast(actions, tf.int32)
  logged = tf.scatter_nd(actions[:, None], tf.ones_like(actions), [num_items]) > 0
  num_logged = tf.math.count_nonzero(logged, dtype=tf.int32)
  message = "draw_support: size must reach the distinct actions of the batch and not exceed N"
  fits = [
    tf.debugging.assert_less_equal(num_logged, size, message),
    tf.debugging.assert_less_equal(size, num_items, message),
  ]
  with tf.control_dependencies([check for check in fits if check is not None]):
    order = tf.random.uniform([num_items], seed=seed) + tf.cast(logged, tf.float32)
  support = tf.sort(tf.math.top_k(order, size).indices)
  share = tf.cast(size - num_logged, tf.float32) / tf.cast(num_items - num_logged, tf.float32)
  return support, tf.where(tf.gather(logged, support), 0.0, tf.math.log(share))


def on_support(
  logits: tf.Tensor, support: tf.Tensor, log_q: tf.Tensor, actions: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Logits and actions that make a loss on the support estimate the loss on the catalogue.

  Args:
    logits: [B, S], scores of the items of the support.
    support: [S] integer, distinct catalogue indices.
    log_q: [S] or [B, S] floating, log of the probability (or expected count) of every item in the
      support; a common constant cancels. Where it is not 0 for the logged items, π(a_i) and with
      it the importance weights are those of the corrected softmax, 1/Q times too large.
    actions: [B] integer, catalogue indices, all in the support.

  Returns:
    Corrected logits [B, S] and the positions of the actions in the support, [B] int32.

  Raises:
    tf.errors.InvalidArgumentError: an action is not in the support.
  """
  support = tf.cast(support, tf.int32)
  actions = tf.cast(actions, tf.int32)
  order = tf.argsort(support)
  found = tf.searchsorted(tf.gather(support, order), actions)
  positions = tf.gather(order, tf.minimum(found, tf.size(support) - 1))
  check = tf.debugging.assert_equal(
    tf.gather(support, positions), actions, "on_support: an action is not in the support; add it"
  )
  with tf.control_dependencies([check] if check is not None else []):
    return logits - tf.cast(log_q, logits.dtype), tf.identity(positions)
