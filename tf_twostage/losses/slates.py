"""Slates drawn from a generator, and the ranker's probabilities in them: Monte Carlo of 2-IPS."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.policies import expected_slate_counts, is_finite

SAMPLING = ("categorical", "systematic")
_CELLS = 2**18  # of equal width, that quantiles are rounded to
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

  "categorical": independent draws. "systematic": a Latin hypercube. Each of the K - 1 places of a
  slate has τ strata of quantiles, which are dealt to the τ slates at random, independently of the
  other places. So a slate is K - 1 independent draws from p, as is a categorical one: expectations
  are the same for every τ, and for τ = 1 so is the variance. For more slates, any estimate that
  averages over them has at most τ/(τ-1) times the variance of independent slates, and less the
  closer it is to a sum over items.

  Quantiles are rounded to 2^18 cells, from a random start. A draw still has distribution p; two
  draws of a slate are the same item with a probability that is too large by less than 2^-18.

  Args:
    logits: [B, N], the generator's scores. They receive no gradient.
    num_slates: τ, slates per row.
    slate_size: K, the logged item included: K - 1 items are drawn.
    temperature: above 1 explores more, below 1 less.
    sampling: "categorical" or "systematic".
    seed: operation seed, see `tf.random.set_seed`.
    stateless_seed: [2] integer, which then determines systematic slates; XLA draws others than
      eager mode and graphs. Categorical ones depend
      on the number of calls of tf.random.categorical in this process, which no checkpoint saves.
    log_q: [N], if the items are a `Support`: draws are from softmax(logits / temperature - log_q).

  Returns:
    [B, τ, K-1] int32 catalogue indices, with repeats next to each other. From logits that are NaN
    or +inf, any items of the catalogue.

  References:
    Owen, Monte Carlo variance of scrambled net quadrature, SIAM J. Numer. Anal. 34, 1997: the bound
      on the variance of a Latin hypercube.
  """
  rows, others = tf.shape(logits)[0], slate_size - 1
  draws = num_slates * others
  logits = _tempered(tf.stop_gradient(logits), temperature, log_q)
  if not others:
    return tf.zeros([rows, num_slates, 0], tf.int32)
  if sampling == "categorical":
    slates = tf.random.categorical(logits, draws, dtype=tf.int32, seed=seed)
    slates = tf.minimum(slates, tf.shape(logits)[1] - 1)  # from NaN, it draws N
    # top_k sorts; tf.sort would negate twice on top of it.
    return tf.math.top_k(tf.reshape(slates, [rows, num_slates, others]), others).values
  if stateless_seed is None:
    stateless_seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64, seed=seed)
  for_cells, for_start = tf.unstack(tf.random.split(stateless_seed))
  # All rows are dealt alike, but each starts at its own item, so that their slates differ.
  cells, width = _latin_hypercube(num_slates, others, for_cells)
  return items_at(logits, cells, num_slates * width, for_start)


def _latin_hypercube(num_slates: int, others: int, stateless_seed: tf.Tensor) -> tuple:
  """Cells of quantiles, [τ, K-1] int32, ascending in each slate; and cells in a stratum."""
  width = max(1, _CELLS // num_slates)
  for_order, for_cell = tf.unstack(tf.random.split(stateless_seed))
  strata = tf.argsort(tf.random.stateless_uniform([others, num_slates], for_order))
  within = tf.random.stateless_uniform([others, num_slates], for_cell, maxval=width, dtype=tf.int32)
  return tf.sort(tf.transpose(strata * width + within)), width


def items_at(
  logits: tf.Tensor, cells: tf.Tensor, num_cells: int, stateless_seed: tf.Tensor
) -> tf.Tensor:
  """The items at quantiles of softmax(logits), from a random item on, by sums instead of searches.

  Args:
    logits: [B, N].
    cells: [τ, K-1] int32, a quantile q as the cell floor(q num_cells), ascending in each slate.
    num_cells: cells of [0, 1), which begin at a random offset of each row.
    stateless_seed: [2] integer.

  Returns:
    [B, τ, K-1] int32. The items of a slate ascend but for one wrap from the last to the first.
  """
  rows, items = tf.unstack(tf.shape(logits))
  draws = tf.size(cells)
  for_offset, for_origin = tf.unstack(tf.random.split(stateless_seed))
  # An item owns the cells from its start to the next item's start. Sums over items of no
  # probability may fall by a rounding, and so below the cell they were at.
  start = _cumsum(
    tf.nn.softmax(logits),
    exclusive=True,
    scale=float(num_cells),
    first=tf.random.stateless_uniform([rows, 1], for_offset, dtype=logits.dtype),
  )
  start = tf.cast(start, tf.int32)
  origin = tf.random.stateless_uniform([rows, 1], for_origin, maxval=items, dtype=tf.int32)
  first = tf.gather(start, origin, batch_dims=1)
  start += tf.where(tf.range(items) < origin, num_cells - first, -first)
  start = tf.clip_by_value(start, 0, num_cells)

  # Draws in the cells before each cell: the rank of the draws in it.
  flat = tf.reshape(cells, [-1])
  per_cell = tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, num_cells + 1)
  rank = tf.cumsum(per_cell, exclusive=True)
  # Items that start behind all draws own none of them.
  start = tf.gather(rank, start) + (draws + 1) * tf.range(rows)[:, None]
  started = tf.math.unsorted_segment_sum(tf.ones_like(start), start, (draws + 1) * rows)
  started = tf.cast(tf.reshape(started, [rows, draws + 1]), tf.float32)
  item = tf.cast(_cumsum(started, first=tf.cast(origin - 1, tf.float32)), tf.int32)
  item = tf.where(item < items, item, item - items)
  drawn = tf.gather(tf.transpose(item), tf.gather(rank, flat))
  return tf.reshape(tf.transpose(drawn), tf.concat([[rows], tf.shape(cells)], 0))


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
    C [B, N] and the mean of q_t over slates [B], both without gradient; NaN for rows whose ranker
    logits are not all finite.

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
  q = tf.where(is_finite(ranker_logits)[:, None], q, np.nan)
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
