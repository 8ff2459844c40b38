"""2-IPS by Monte Carlo: the ranker enters the generator's loss through sampled slates."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, WeightedLoss
from tf_twostage.losses.slates import SAMPLING, sample_slates, slate_counts


class TwoStageIPS(WeightedLoss):
  """-r_i ω_i (1/τ) Σ_t q_t (log p(a_i) + α Σ_{a in A_t, a != a_i} log p(a)).

  A_t holds the distinct items of {a_i} and K - 1 draws from softmax(logits / temperature); q_t is
  the ranker's softmax over A_t, read at a_i; ω_i comes from sg(p(a_i)) / β_i. The gradient flows
  through the logarithms alone: neither weights, nor slates, nor q_t carry any.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, Algorithm 1.
  """

  needs_ranker = True
  uses_ranker_share = True

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
    num_slates: τ, slates drawn for each row.
    slate_size: K, items of a slate, the logged one counted.
    sampling_temperature: slates are drawn from softmax(logits / this).
    sampling: "categorical", independent draws as published, or "systematic", the same slates
      one by one with less variance and in a fraction of the time (see `sample_slates`).
    normalize_shares: whether self-normalised weights are divided by the batch mean of ω q
      instead of that of ω, which leaves the loss about K times as large.
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
    if sampling not in SAMPLING:
      raise InputError(f"2-IPS: sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    self.alpha = alpha
    self.num_slates = num_slates
    self.slate_size = slate_size
    self.sampling_temperature = sampling_temperature
    self.sampling = sampling
    self.normalize_shares = normalize_shares
    self.seed = seed

  def evaluate(self, x: LossInputs) -> LossTerms:
    slates = sample_slates(
      x.logits,
      num_slates=self.num_slates,
      slate_size=self.slate_size,
      temperature=self.sampling_temperature,
      sampling=self.sampling,
      seed=self.seed,
    )
    counts, share = slate_counts(slates, x.actions, x.ranker_logits, alpha=self.alpha)
    # One fused kernel gives Σ_a C_ia log p(a) and its gradient, where counts sum to 1.
    total = tf.reduce_sum(counts, axis=1)
    labels = counts * (1 / total)[:, None]
    mean_log_p = -tf.nn.softmax_cross_entropy_with_logits(labels, x.logits)
    # log p(a_i) differs from that mean by logits alone: their denominator is the same.
    mean_logit = tf.linalg.matvec(labels[:, None], x.logits)[:, 0]
    log_p = mean_log_p + tf.gather(x.logits, x.actions, batch_dims=1) - mean_logit
    ratio, weights = self.importance(
      log_p, x.propensities, shares=share if self.normalize_shares else None
    )
    loss = -x.rewards * weights * total * mean_log_p
    return LossTerms(loss, ratio, weights, share)
