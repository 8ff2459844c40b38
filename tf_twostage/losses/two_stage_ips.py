"""2-IPS by Monte Carlo: the ranker enters the generator's loss through sampled slates."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, WeightedLoss


def sample_slates(
  logits: tf.Tensor,
  *,
  num_slates: int,
  slate_size: int,
  temperature: float = 1.0,
  seed: int | None = None,
) -> tf.Tensor:
  """Slates around a logged item, without that item: draws with replacement.

  Args:
    logits: [B, N], the generator's scores. They receive no gradient.
    num_slates: τ, how many slates a row.
    slate_size: K, the logged item counted, so that K - 1 items are drawn.
    temperature: items are drawn from softmax(logits / temperature).
    seed: operation seed, see `tf.random.set_seed`.

  Returns:
    [B, τ, K-1] int32 catalogue indices.
  """
  others = slate_size - 1
  draws = tf.random.categorical(
    tf.stop_gradient(logits) / temperature, num_slates * others, dtype=tf.int32, seed=seed
  )
  return tf.reshape(draws, [tf.shape(logits)[0], num_slates, others])


def slate_counts(
  slates: tf.Tensor, actions: tf.Tensor, ranker_logits: tf.Tensor, *, alpha: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """How often each item's log-probability enters the loss of a row, weighted by the ranker.

  With A_t the distinct items of {a_i} and slate t, and q_t = softmax of the ranker logits over
  A_t, read at a_i:
    C_ia = (1/τ) Σ_t q_t * (1 if a = a_i, alpha if a is another item of A_t, else 0),
  so that (1/τ) Σ_t q_t (log p(a_i) + alpha Σ_{a in A_t, a != a_i} log p(a)) = Σ_a C_ia log p(a).

  Args:
    slates: [B, τ, K-1] catalogue indices, repeats and the logged item allowed.
    actions: [B] the logged items a_i.
    ranker_logits: [B, N]. They receive no gradient.
    alpha: α, weight of the other items of a slate.

  Returns:
    C [B, N] and the mean of q_t over slates [B], both without gradient.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, Algorithm 1.
  """
  actions = tf.cast(actions, slates.dtype)
  ranker_logits = tf.stop_gradient(ranker_logits)
  rows, num_slates, others = tf.unstack(tf.shape(slates))
  items = tf.shape(ranker_logits)[1]
  logged = tf.stack([tf.range(rows), tf.cast(actions, tf.int32)], axis=-1)

  # Odds of every item against the logged one: q_t = 1 / (1 + their sum over the slate), which is
  # right where the odds overflow to infinity, too.
  odds = tf.exp(ranker_logits - tf.gather_nd(ranker_logits, logged)[:, tf.newaxis])
  odds = tf.tensor_scatter_nd_update(odds, logged, tf.zeros_like(odds[:, 0]))

  # A repeat becomes the logged item, which is in the slate anyway and has no odds.
  slates = tf.sort(slates, axis=-1)
  first = tf.zeros_like(slates[..., :1], tf.bool)
  repeats = tf.concat([first, slates[..., 1:] == slates[..., :-1]], axis=-1)
  draws = tf.reshape(
    tf.where(repeats, actions[:, tf.newaxis, tf.newaxis], slates), [rows, num_slates * others]
  )

  slate_odds = tf.reshape(tf.gather(odds, draws, batch_dims=1), tf.shape(slates))
  q = 1.0 / (1.0 + tf.reduce_sum(slate_odds, axis=-1))
  mean_q = tf.reduce_mean(q, axis=-1)
  counts = tf.math.bincount(
    draws,
    weights=tf.repeat(q * alpha / tf.cast(num_slates, q.dtype), others, axis=-1),
    minlength=items,
    maxlength=items,
    axis=-1,
  )
  return tf.tensor_scatter_nd_update(counts, logged, mean_q), mean_q


class TwoStageIPS(WeightedLoss):
  """-r_i ω_i (1/τ) Σ_t q_t (log p(a_i) + α Σ_{a in A_t, a != a_i} log p(a)).

  A_t holds the distinct items of {a_i} and K - 1 draws from softmax(logits / temperature); q_t is
  the ranker's softmax over A_t, read at a_i; ω_i comes from sg(p(a_i)) / β_i. The gradient flows
  through the logarithms alone: neither weights, nor slates, nor q_t carry any.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, Algorithm 1.
  """

  needs_ranker = True

  def __init__(
    self,
    importance: ImportanceWeights = DEFAULT_WEIGHTS,
    alpha: float = 1e-2,
    num_slates: int = 100,
    slate_size: int = 30,
    sampling_temperature: float = math.e,
    seed: int | None = None,
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    alpha: α, weight of the other items of a slate.
    num_slates: τ, slates drawn for each row.
    slate_size: K, items of a slate, the logged one counted.
    sampling_temperature: slates are drawn from softmax(logits / this).
    seed: operation seed, see `tf.random.set_seed`.
    """
    super().__init__(importance, **kwargs)
    if num_slates < 1 or slate_size < 1:
      raise InputError(
        f"2-IPS: num_slates and slate_size must be at least 1, got {num_slates} and {slate_size}"
      )
    if not sampling_temperature > 0:
      raise InputError(f"2-IPS: sampling_temperature must be positive, got {sampling_temperature}")
    if not alpha >= 0:
      raise InputError(f"2-IPS: alpha must be at least 0, got {alpha}")
    self.alpha = alpha
    self.num_slates = num_slates
    self.slate_size = slate_size
    self.sampling_temperature = sampling_temperature
    self.seed = seed

  def terms(self, logits, actions, propensities, rewards, ranker_logits=None) -> LossTerms:
    x = self.checked(logits, actions, propensities, rewards, ranker_logits)
    slates = sample_slates(
      x.logits,
      num_slates=self.num_slates,
      slate_size=self.slate_size,
      temperature=self.sampling_temperature,
      seed=self.seed,
    )
    counts, share = slate_counts(slates, x.actions, x.ranker_logits, alpha=self.alpha)
    log_p = tf.nn.log_softmax(x.logits)
    ratio, weights = self.importance(tf.gather(log_p, x.actions, batch_dims=1), x.propensities)
    loss = -x.rewards * weights * tf.reduce_sum(counts * log_p, axis=-1)
    return LossTerms(loss, ratio, weights, share)

  def get_config(self):
    options = ("alpha", "num_slates", "slate_size", "sampling_temperature", "seed")
    return {**super().get_config(), **{name: getattr(self, name) for name in options}}
