"""2-IPS by Monte Carlo: the ranker enters the generator's loss through sampled slates."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms, weighted_log_prob
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, RewardLoss
from tf_twostage.losses.slates import SAMPLING, expected_counts, sample_slates, slate_counts


class TwoStageIPS(RewardLoss):
  """-r_i ω_i (1/τ) Σ_t q_t (log p(a_i) + α Σ_{a in A_t, a != a_i} log p(a)).

  A_t holds the distinct items of {a_i} and K - 1 draws from softmax(logits / temperature); q_t is
  the ranker's softmax over A_t, read at a_i; ω_i comes from sg(p(a_i)) / β_i. The gradient flows
  through the logarithms only: weights, slates and q_t carry none.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, Algorithm 1.
  """

  needs_ranker = True
  uses_ranker_probability = True

  def __init__(
    self,
    importance: ImportanceWeights = DEFAULT_WEIGHTS,
    alpha: float = 1e-2,
    num_slates: int = 100,
    slate_size: int = 30,
    sampling_temperature: float = math.e,
    sampling: str = "categorical",
    normalize_shares: bool = False,
    seed: int | None = None,
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    alpha: α, weight of the other items of a slate.
    num_slates: τ, slates drawn per row.
    slate_size: K, items of a slate, the logged one included.
    sampling_temperature: slates are drawn from softmax(logits / sampling_temperature).
    sampling: categorical (independent draws, as published), systematic (slates of the same
      distribution, stratified over the τ slates: no more variance, in a fraction of the time, see
      `sample_slates`), or exact
      (the expectation over all slates, with repeated items: no variance).
    normalize_shares: divide self-normalised weights by the batch mean of ω q instead of that of
      ω, which makes the loss about K times as large.
    seed: operation seed, see `tf.random.set_seed`. Systematic draws count their steps in a
      tf.random.Generator, which model checkpoints save, so that a resumed run draws what an
      uninterrupted one would; categorical draws cannot.
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
    if sampling not in (*SAMPLING, "exact"):
      raise InputError(
        f"2-IPS: sampling must be one of {', '.join(SAMPLING)}, exact; got {sampling!r}"
      )
    self.alpha = alpha
    self.num_slates = num_slates
    self.slate_size = slate_size
    self.sampling_temperature = sampling_temperature
    self.sampling = sampling
    self.compiles = sampling == "exact"
    self.normalize_shares = normalize_shares
    self.seed = seed
    self.generator = None
    if sampling == "systematic":
      start = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64, seed=seed)
      self.generator = tf.random.Generator.from_seed(start)

  def evaluate(self, x: LossInputs) -> LossTerms:
    counts, share = self._counts(x)
    total = tf.reduce_sum(counts, axis=1)
    mean_log_p, log_p = _log_probs(x.logits, x.actions, counts, total)
    if x.log_q is not None:  # log p(a) is of the item alone, not of all that it stands for
      own = tf.where(tf.math.is_finite(x.log_q), x.log_q, 0.0)
      mean_log_p += tf.linalg.matvec(counts, own)
    ratio, weights = self.importance(
      log_p, x.propensities, shares=share if self.normalize_shares else None
    )
    loss = -weighted_log_prob(x.rewards * weights, mean_log_p)
    return LossTerms(loss, ratio, weights, share)

  def _counts(self, x: LossInputs) -> tuple[tf.Tensor, tf.Tensor]:
    if self.sampling == "exact":
      return expected_counts(
        x.scores,
        x.actions,
        x.ranker_logits,
        slate_size=self.slate_size,
        temperature=self.sampling_temperature,
        alpha=self.alpha,
        log_q=x.log_q,
      )
    slates = sample_slates(
      x.scores,
      num_slates=self.num_slates,
      slate_size=self.slate_size,
      temperature=self.sampling_temperature,
      sampling=self.sampling,
      seed=self.seed,
      stateless_seed=self.generator.make_seeds()[:, 0] if self.generator else None,
      log_q=x.log_q,
    )
    return slate_counts(slates, x.actions, x.ranker_logits, alpha=self.alpha, log_q=x.log_q)


def _log_probs(
  logits: tf.Tensor, actions: tf.Tensor, counts: tf.Tensor, total: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Σ_a C_ia log p(a), whose gradient is C_ia - p(a) Σ_b C_ib, and log p(a_i) without any."""

  @tf.custom_gradient
  def weighted(logits):
    p = tf.nn.softmax(logits)
    # Below the largest logit, whose probability is one over the softmax's denominator.
    # Kept finite: an excluded item's -inf counts 0 times.
    largest = tf.reduce_max(logits, 1, keepdims=True)
    below = tf.maximum(logits - largest, -1e30)
    log_largest = tf.math.log(tf.reduce_max(p, 1))
    log_p = tf.gather(logits, actions, batch_dims=1) - largest[:, 0] + log_largest
    mean = tf.linalg.matvec(counts[:, None], below)[:, 0] + total * log_largest
    mean = tf.where(log_p == -np.inf, log_p, mean)

    def gradient(d_mean, _):
      return d_mean[:, None] * (counts - total[:, None] * p)

    return (mean, log_p), gradient

  return weighted(logits)
