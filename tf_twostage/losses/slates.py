"""Slates drawn from a generator, and the ranker's probabilities in them: Monte Carlo of 2-IPS."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.policies import expected_slate_counts

SAMPLING = ("categorical", "systematic")
_BLOCK = 64
_MIN_SHARE = 1e-26


def sample_slates(
  logits: tf.Tensor,
  *,
  num_slates: int,
  slate_size: int,
  temperature: float = 1.0,
  sampling: str = "categorical",
  seed: int | None = None,
  stateless_seed: tf.Tensor | None = None,
  log_q: tf.Tensor | None = None,
) -> tf.Tensor:
  """Slates around a logged item, without that item: draws from softmax(logits / temperature).

  "categorical": independent draws. "systematic": a row's M = τ(K-1) draws are at M equidistant
  quantiles from a random start, so that every item is drawn M p times, rounded up or down, and
  are dealt to the slates at random. Each draw still has distribution p, so expectations of sums
  over a slate do not change. Two draws of a slate are not quite independent: they never share a
  quantile, so repeats are rarer, by less than 1/(M-1). A slate of the defaults has less than
  (K-2)/(2τ) = 0.14 repeats too few among its 29 draws.

  Args:
    logits: [B, N], the generator's scores. They receive no gradient.
    num_slates: τ, slates per row.
    slate_size: K, the logged item included: K - 1 items are drawn.
    temperature: above 1 explores more, below 1 less.
    sampling: "categorical" or "systematic".
    seed: operation seed, see `tf.random.set_seed`.
    stateless_seed: [2] integer, which then determines systematic slates. Categorical ones depend
      on the number of calls of tf.random.categorical in this process, which no checkpoint saves.
    log_q: [N], if the items are a `Support`: draws are from softmax(logits / temperature - log_q).

  Returns:
    [B, τ, K-1] int32 catalogue indices, with repeats next to each other.
  """
  rows, others = tf.shape(logits)[0], slate_size - 1
  draws = num_slates * others
  logits = _tempered(tf.stop_gradient(logits), temperature, log_q)
  if not others:
    return tf.zeros([rows, num_slates, 0], tf.int32)
  if sampling == "categorical":
    slates = tf.random.categorical(logits, draws, dtype=tf.int32, seed=seed)
    # top_k sorts; tf.sort would negate twice on top of it.
    return tf.math.top_k(tf.reshape(slates, [rows, num_slates, others]), others).values
  if stateless_seed is None:
    stateless_seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64, seed=seed)
  for_deal, for_quantiles = tf.unstack(tf.random.split(stateless_seed))
  # All rows are dealt alike, but each starts at its own point, so that their slates differ.
  # Quantiles of a slate are in order, so that repeats are neighbors.
  deal = tf.random.experimental.stateless_shuffle(tf.range(draws), for_deal)
  deal = tf.sort(tf.reshape(deal, [num_slates, others]))
  quantiles = systematic_draws(logits, draws, for_quantiles)
  return tf.reshape(
    tf.transpose(tf.gather(tf.transpose(quantiles), tf.reshape(deal, [-1]))),
    [rows, num_slates, others],
  )


def systematic_draws(logits: tf.Tensor, draws: int, stateless_seed: tf.Tensor) -> tf.Tensor:
  """Draws at equidistant quantiles of softmax(logits) from a random start.

  Args:
    logits: [B, N].
    draws: M.
    stateless_seed: [2] integer.

  Returns:
    [B, M] int32, in ascending order but for one wrap from the last item to the first; the item
    that the order starts with is random.
  """
  rows, items = tf.unstack(tf.shape(logits))
  for_offset, for_origin = tf.unstack(tf.random.split(stateless_seed))
  # The item that starts at quantile s owns (j + offset) / M for j from s to where the next starts;
  # s is a sum of M p, rounded up from the offset. No sum rounds the first item's start up to 1.
  highest = 1.0 - 2.0 * draws * np.finfo(logits.dtype.as_numpy_dtype).eps
  start = _cumsum(
    tf.nn.softmax(logits),
    exclusive=True,
    scale=float(draws),
    first=tf.random.stateless_uniform([rows, 1], for_offset, maxval=highest, dtype=logits.dtype),
  )
  start = tf.cast(start, tf.int32)

  origin = tf.random.stateless_uniform([rows, 1], for_origin, maxval=items, dtype=tf.int32)
  first = tf.gather(start, origin, batch_dims=1)
  start += tf.where(tf.range(items) < origin, draws - first, -first)
  # Sums over items of no probability may fall by a rounding, and so below the integer they were at.
  start = tf.maximum(start, 0)
  # Items that start at M own nothing.
  started = tf.math.bincount(start, minlength=draws, maxlength=draws, axis=-1)
  item = _cumsum(tf.cast(started, tf.float32), first=tf.cast(origin - 1, tf.float32))
  item = tf.cast(item, tf.int32)
  return tf.where(item < items, item, item - items)


def slate_counts(
  slates: tf.Tensor,
  actions: tf.Tensor,
  ranker_logits: tf.Tensor,
  *,
  alpha: float,
  log_q: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """How often each item's log-probability enters the loss of a row, weighted by the ranker.

  With A_t the distinct items of {a_i} and slate t, and q_t = softmax of the ranker logits over
  A_t, read at a_i:
    C_ia = (1/τ) Σ_t q_t * (1 if a = a_i, alpha if a is another item of A_t, else 0),
  so that (1/τ) Σ_t q_t (log p(a_i) + alpha Σ_{a in A_t, a != a_i} log p(a)) = Σ_a C_ia log p(a).

  Args:
    slates: [B, τ, K-1] catalogue indices, the logged item allowed. Repeats stand next to each
      other, as `sample_slates` makes them.
    actions: [B] the logged items a_i.
    ranker_logits: [B, N]. They receive no gradient.
    alpha: α, weight of the other items of a slate.
    log_q: [N], where the items are a `Support`: what stands for several items repeats none of
      them when it is drawn twice.

  Returns:
    C [B, N] and the mean of q_t over slates [B], both without gradient.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, Algorithm 1.
  """
  ranker_logits = tf.stop_gradient(ranker_logits)
  shape = tf.shape(slates)
  rows, num_slates, _ = tf.unstack(shape)
  items = tf.shape(ranker_logits)[1]
  first_of_row = tf.range(rows) * items
  logged = first_of_row + tf.cast(actions, tf.int32)

  # A repeat becomes the logged item, which is in the slate anyway and has no odds.
  repeats = slates[..., 1:] == slates[..., :-1]
  if log_q is not None:
    repeats &= tf.gather(log_q >= 0, slates[..., 1:])
  repeats = tf.concat([tf.zeros_like(slates[..., :1], tf.bool), repeats], -1)
  draws = tf.where(repeats, logged[:, None, None], slates + first_of_row[:, None, None])

  # Odds of every item against the logged one: q_t = 1 / (1 + their sum over the slate), which is
  # right where they overflow, too; kept off 0 so that a row's counts are never all 0.
  flat = tf.reshape(ranker_logits, [-1])
  odds = tf.exp(ranker_logits - tf.gather(flat, logged)[:, None])
  odds = tf.tensor_scatter_nd_update(
    tf.reshape(odds, [-1]), logged[:, None], tf.zeros([rows], odds.dtype)
  )
  q = tf.maximum(1.0 / (1.0 + tf.reduce_sum(tf.gather(odds, draws), axis=-1)), _MIN_SHARE)
  mean_q = tf.reduce_mean(q, axis=-1)
  by_draw = tf.broadcast_to((q * (alpha / tf.cast(num_slates, q.dtype)))[..., None], shape)
  counts = tf.math.unsorted_segment_sum(by_draw, draws, rows * items)
  counts = tf.tensor_scatter_nd_update(counts, logged[:, None], mean_q)
  return tf.reshape(counts, [rows, items]), mean_q


def expected_counts(
  logits: tf.Tensor,
  actions: tf.Tensor,
  ranker_logits: tf.Tensor,
  *,
  slate_size: int,
  temperature: float,
  alpha: float,
  log_q: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """The expectation of `slate_counts` over slates, for slates that keep their repeats.

  Args:
    logits: [B, N], the generator's scores. They receive no gradient.
    actions: [B], the logged items a_i.
    ranker_logits: [B, N]. They receive no gradient.
    slate_size: K.
    temperature: slates are drawn from softmax(logits / temperature).
    alpha: α, weight of the other items of a slate.
    log_q: [N], as for `sample_slates`.

  Returns:
    As `slate_counts`.
  """
  counts, share = expected_slate_counts(
    _tempered(logits, temperature, log_q), ranker_logits, actions, slate_size, alpha
  )
  logged = tf.stack([tf.range(tf.shape(logits)[0]), tf.cast(actions, tf.int32)], axis=1)
  return tf.tensor_scatter_nd_add(counts, logged, share), share


def _tempered(logits: tf.Tensor, temperature: float, log_q: tf.Tensor | None) -> tf.Tensor:
  """Logits of the draws: the temperature applies to the scores, not to log_q."""
  logits = logits * (1 / temperature)
  return logits if log_q is None else logits - log_q


def _cumsum(
  x: tf.Tensor,
  *,
  exclusive: bool = False,
  scale: float = 1.0,
  first: tf.Tensor | None = None,
) -> tf.Tensor:
  """first + scale times cumulative sums of [B, M] along rows; first is [B, 1].

  By blocks, which on CPUs is twice as fast as tf.cumsum.
  """
  rows, width = tf.unstack(tf.shape(x))
  blocks = -(-width // _BLOCK)
  x = tf.reshape(tf.pad(x, [[0, 0], [0, blocks * _BLOCK - width]]), [-1, _BLOCK])
  upper = np.triu(np.full([_BLOCK, _BLOCK], scale, x.dtype.as_numpy_dtype), int(exclusive))
  within = tf.matmul(x, upper)
  total = within[:, -1:] + scale * x[:, -1:] if exclusive else within[:, -1:]
  before = tf.cumsum(tf.reshape(total, [rows, blocks, 1]), axis=1, exclusive=True)
  if first is not None:
    before += first[..., None]
  within = tf.reshape(within, [rows, blocks, _BLOCK])
  return tf.reshape(within + before, [rows, blocks * _BLOCK])[:, :width]
