"""A sampled part of a large catalogue, shared by a batch, in place of the whole.

  support = sample_support(actions, draws, size=S, seed=(seed, step))
  logits = ...  # [B, S], scores of the items of the support
  loss(logits, support.positions, propensities, rewards, ranker_logits, log_q=support.log_q)

The support holds the items that the global batch logged, hard candidates, and M draws. Item b is
drawn M p(b) times on average, so each draw counts 1 / (M p(b)) = 1/Q times: its logit gets -log Q.
Given the logged and hard items, the softmax's denominator Σ exp(logit - log Q) then has exactly
the expectation of the full one, for any p. Logged and hard items have Q = 1, which leaves
numerators as they are; draws of them are not counted again.

What is not linear in the denominator is biased: E[log of the sum] lies below the log of the full
sum and E[1 / sum] above its inverse (Jensen). So probabilities and importance weights come out too
large and cross-entropy too small, by about half the squared relative standard error of the sum,
which falls like 1/M or faster. The same holds for slates, the two-stage policy and direct
estimates. docs/large_catalogues.md has measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.replicas import all_rows


class Support(NamedTuple):
  """Sampled items and their weights.

  Attributes:
    items: [S] int32 catalogue indices, ascending.
    log_q: [S] float32, an item counts exp(-log_q) times: 0 for logged and hard items, log M p(b)
      minus the log of the number of its draws for drawn ones, infinite for a repeat.
    positions: [B] int32, positions of the logged items in the support.
  """

  items: tf.Tensor
  log_q: tf.Tensor
  positions: tf.Tensor


# From quantiles [M] float64 in [0, 1) to items [M] int32 and the log of their probabilities [M].
Draws = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def uniform(counts: np.ndarray) -> Draws:
  """All N items are equally likely; counts are [N]."""
  num_items = len(counts)

  def draw(quantiles: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    items = tf.minimum(tf.cast(quantiles * num_items, tf.int32), num_items - 1)
    return items, tf.fill(tf.shape(items), np.float32(-np.log(num_items)))

  return draw


def log_uniform(counts: np.ndarray) -> Draws:
  """p = log(1 + 1/rank) / log(N + 1), about 1/rank; ranks are by logged counts [N]."""
  num_items = len(counts)
  by_rank = tf.constant(np.argsort(-counts, kind="stable").astype(np.int32))
  scale = np.log(num_items + 1.0)

  def draw(quantiles: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    rank = tf.clip_by_value(tf.floor(tf.exp(quantiles * scale)), 1.0, np.float64(num_items))
    log_p = tf.math.log(tf.math.log1p(1 / rank) / scale)
    return tf.gather(by_rank, tf.cast(rank, tf.int32) - 1), tf.cast(log_p, tf.float32)

  return draw


def popularity(counts: np.ndarray) -> Draws:
  """p = (count + 1) / (rows + N): smoothed logged counts [N], so that every item can be drawn."""
  ends = np.cumsum(counts.astype(np.int64) + 1)
  total, table = int(ends[-1]), tf.constant(ends)
  log_p = tf.constant(np.log((counts + 1) / total).astype(np.float32))

  def draw(quantiles: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    ticket = tf.minimum(tf.cast(quantiles * total, tf.int64), total - 1)
    items = tf.searchsorted(table, ticket, side="right")
    return items, tf.gather(log_p, items)

  return draw


# From logged counts [N] to a function that draws; a draw costs the same for any N.
DRAWS: dict[str, Callable[[np.ndarray], Draws]] = {
  "uniform": uniform,
  "log_uniform": log_uniform,
  "popularity": popularity,
}


def sample_support(
  actions: tf.Tensor,
  draws: Draws,
  *,
  size: int,
  seed: Any,
  hard: tf.Tensor | None = None,
) -> Support:
  """Samples a support: the logged items of the global batch, hard candidates, and draws.

  The j-th of M draws is at the quantile (j + u_j) / M, u_j uniform in [0, 1): stratified, so that
  an item is drawn M p times on average, with less variance than by independent draws.

  Args:
    actions: [B] integer catalogue indices, this replica's rows.
    draws: the distribution, see `DRAWS`.
    size: S, larger than the rows of the global batch and the hard candidates together.
    seed: two integers, which determine the draws: all replicas draw the same.
    hard: [H] integer catalogue indices to include; repeats are allowed.

  Raises:
    InputError: there is no place left for draws.
    ValueError: the number of rows is unknown while tracing.
  """
  actions = tf.cast(actions, tf.int32)
  certain = all_rows(actions)
  if hard is not None:
    certain = tf.concat([certain, tf.cast(hard, tf.int32)], 0)
  taken = certain.shape[0]
  if taken is None:
    raise ValueError(f"a support needs batches of a known size, got actions {actions.shape}")
  if taken >= size:
    raise InputError(
      f"a support of {size} items has no place left for draws beside {taken} rows of the batch and"
      " hard candidates; raise support_size, or lower batch_size or hard_candidates"
    )
  count = size - taken
  spread = tf.random.stateless_uniform([count], seed, dtype=tf.float64)
  drawn, log_p = draws((tf.range(count, dtype=tf.float64) + spread) / count)

  items = tf.concat([certain, drawn], 0)
  log_q = tf.concat([tf.zeros([taken]), log_p + np.float32(np.log(count))], 0)
  # The sort is stable: logged and hard items stand before draws of the same item.
  order = tf.argsort(items, stable=True)
  items, log_q = tf.gather(items, order), tf.gather(log_q, order)
  first = tf.concat([[True], items[1:] != items[:-1]], 0)
  run = tf.cumsum(tf.cast(first, tf.int32)) - 1
  times = tf.gather(tf.math.unsorted_segment_sum(tf.ones_like(log_q), run, size), run)
  log_q = tf.where(order < taken, 0.0, log_q - tf.math.log(times))
  return Support(
    items, tf.where(first, log_q, np.inf), tf.searchsorted(items, actions, side="left")
  )
