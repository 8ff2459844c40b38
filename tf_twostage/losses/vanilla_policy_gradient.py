"""The policy gradient of whole slates, by Monte Carlo: a baseline of gradients without samples."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, RewardLoss
from tf_twostage.losses.ips import ips
from tf_twostage.policies import is_finite

_NEVER = -1e30  # in place of -inf, whose gradient is NaN


class VanillaPolicyGradient(RewardLoss):
  """-ω_i r_i log π(a_i), with the gradient Σ_t v_t ∇ log P(A_t) / Σ_t v_t of log π.

  π(a) = E[q(a | A)]: the generator draws slates A of K distinct items by Plackett-Luce, and q is
  the ranker's softmax over A. So ∇π(a) = E[q(a | A) ∇ log P(A)], P(A) the probability of the slate
  in the order drawn.

  Slates without a_i add nothing, so that A_t is drawn given that it holds a_i. Give every item an
  exponential clock: A_t is a_i and the first K - 1 others, and v_t = w_t q(a_i | A_t), w_t the
  probability that a_i is before the K-th of the others. The mean of v_t estimates π(a_i) without
  bias, and with weights neither clipped nor normalised so does the gradient.

  References:
    Kiyohara et al., Credit-assigned Policy Gradient for Early Stage Retrieval in Two-stage Ranking,
      arXiv 2605.26385, 2026: the gradient, there called vanilla, and why it has much variance. The
      credit-assigned one is that of the policy "distinct" with ranker_gradient=False.
  """

  needs_ranker = True
  uses_ranker_probability = True
  stage = "distinct"

  def __init__(
    self,
    importance: ImportanceWeights = DEFAULT_WEIGHTS,
    num_slates: int = 10,
    slate_size: int = 30,
    seed: int | None = None,
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    num_slates: slates drawn per row.
    slate_size: K, items of a slate.
    seed: of the slates.
    """
    super().__init__(importance, **kwargs)
    if num_slates < 1 or slate_size < 1:
      raise InputError(
        "policy gradient: num_slates and slate_size must be at least 1, got"
        f" {num_slates} and {slate_size}"
      )
    self.num_slates = num_slates
    self.slate_size = slate_size
    self.seed = seed
    start = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64, seed=seed)
    self.generator = tf.random.Generator.from_seed(start)

  def evaluate(self, x: LossInputs) -> LossTerms:
    seed = self.generator.make_seeds()[:, 0]
    slates, held, log_held = slates_with(
      x.logits, x.actions, self.num_slates, self.slate_size, seed
    )
    scores = _at(x.ranker_logits, slates, held)
    own = tf.gather(x.ranker_logits, x.actions, batch_dims=1)[:, None]
    log_share = own - tf.reduce_logsumexp(scores, 2)
    log_v = tf.stop_gradient(log_held + log_share)
    log_total = tf.reduce_logsumexp(log_v, 1)  # -inf of an excluded item
    shares = tf.exp(log_v - tf.maximum(log_total, _NEVER)[:, None])
    valid = is_finite(x.ranker_logits) & tf.math.is_finite(tf.reduce_logsumexp(x.logits, 1))
    logits = x.logits * tf.where(valid, tf.ones_like(log_total), np.nan)[:, None]
    score = tf.reduce_sum(shares * log_probability(logits, slates, held), 1)
    log_prob = log_total - np.log(self.num_slates) + score - tf.stop_gradient(score)
    ratio, weights = self.importance(log_prob, x.propensities)
    log_share = log_total - tf.maximum(tf.reduce_logsumexp(log_held, 1), _NEVER)
    return LossTerms(ips(log_prob, weights, x.rewards), ratio, weights, tf.exp(log_share))


def slates_with(
  logits: tf.Tensor, actions: tf.Tensor, num_slates: int, slate_size: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Draws Plackett-Luce slates given that they hold a_i.

  The others come in the order of their clocks; the time of a_i is drawn given that it is before the
  K-th of the others.

  Args:
    logits: [B, N]; no gradient flows.
    actions: [B] catalogue indices.
    num_slates: τ.
    slate_size: K.
    seed: [2] integer.

  Returns:
    Items [B, τ, K] int32 in the order drawn; whether a place holds an item, which the last ones do
    not where fewer than K items are not excluded; and log w [B, τ], w the probability of being
    among the first K given the clocks of the others.
  """
  logits = tf.stop_gradient(logits)
  rows, items = tf.unstack(tf.shape(logits))
  seeds = tf.random.split(seed, 2)
  shape = tf.stack([rows, num_slates, items])
  exponential = -tf.math.log(
    tf.random.stateless_uniform(shape, seeds[0], dtype=logits.dtype, minval=1e-20)
  )
  other = tf.range(items) != tf.cast(actions, tf.int32)[:, None]
  order = tf.where(other, logits, -np.inf)[:, None] - tf.math.log(exponential)
  order = tf.pad(order, [[0, 0], [0, 0], [0, slate_size]], constant_values=-np.inf)
  order, others = tf.math.top_k(order, slate_size)
  logit = tf.gather(logits, actions, batch_dims=1)[:, None]
  # In units of the clock of a_i, the K-th of the others rings at `within`.
  log_within = tf.where(logit > -np.inf, logit - order[:, :, -1], logit)
  held = -tf.math.expm1(-tf.exp(tf.minimum(log_within, 60.0)))
  log_held = tf.where(held < 1e-4, log_within, tf.math.log(held))
  uniform = tf.random.stateless_uniform(tf.shape(held), seeds[1], dtype=logits.dtype, minval=1e-6)
  clock = tf.where(
    held < 1e-4, tf.math.log(uniform) + log_held, tf.math.log(-tf.math.log1p(-uniform * held))
  )
  order = tf.concat([(logit - clock)[:, :, None], order[:, :, :-1]], 2)
  actions = tf.cast(tf.broadcast_to(actions[:, None, None], tf.shape(order[:, :, :1])), tf.int32)
  slates = tf.concat([actions, others[:, :, :-1]], 2)
  order, place = tf.math.top_k(order, slate_size)
  slates = tf.minimum(tf.gather(slates, place, batch_dims=2), items - 1)
  return slates, order > -np.inf, log_held


def log_probability(logits: tf.Tensor, slates: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
  """log P(A) of Plackett-Luce slates in their order: [B, N], [B, τ, K] to [B, τ], differentiable.

  Places that do not hold an item count nothing.
  """
  logits = tf.maximum(logits - tf.stop_gradient(tf.reduce_max(logits, 1, keepdims=True)), _NEVER)
  chosen = _at(logits, slates, held)
  rest = _without(logits, slates, held)
  # From the last place to the first, so that no sum is a difference.
  remaining = tf.math.cumulative_logsumexp(tf.concat([rest[:, :, None], chosen[:, :, ::-1]], 2), 2)
  return tf.reduce_sum(tf.where(held, chosen - remaining[:, :, :0:-1], 0.0), 2)


def _at(logits: tf.Tensor, slates: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
  """Logits [B, N] of the items of slates, [B, τ, K]."""
  shape = tf.shape(slates)
  flat = tf.gather(logits, tf.reshape(slates, [shape[0], -1]), batch_dims=1)
  return tf.where(held, tf.reshape(flat, shape), _NEVER)


def _without(logits: tf.Tensor, slates: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
  """log Σ exp of the logits [B, N] of all items that are not in a slate, [B, τ]."""
  rows, num_slates, _ = tf.unstack(tf.shape(slates))
  shape = tf.stack([rows, num_slates, tf.shape(logits)[1]])
  row, slate = tf.meshgrid(tf.range(rows), tf.range(num_slates), indexing="ij")
  place = tf.stack(
    [*(tf.broadcast_to(at[:, :, None], tf.shape(slates)) for at in (row, slate)), slates], 3
  )
  outside = tf.scatter_nd(place, tf.cast(held, logits.dtype), shape) == 0
  return tf.reduce_logsumexp(tf.where(outside, logits[:, None], _NEVER), 2)
