"""Top-K correction: rewards count if the logged item is among K independent draws."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, RewardLoss
from tf_twostage.losses.ips import ips


def top_k_multiplier(log_prob_actions: tf.Tensor, k: int) -> tf.Tensor:
  """λ_K = sg(K (1 - π(a_i))^(K-1)): K for an unlikely item, 0 for a certain one.

  λ_K is the derivative in π of the probability of being among K draws, 1 - (1 - π)^K.

  Args:
    log_prob_actions: [B], log π(a_i).
    k: K.

  Returns:
    [B], without gradient.

  References:
    [Chen19] Chen et al., Top-K Off-Policy Correction for a REINFORCE Recommender System, WSDM
      2019, section 4.3.
  """
  if k == 1:
    return tf.ones_like(log_prob_actions)
  log_prob = tf.stop_gradient(log_prob_actions)
  # log(1 - π): each form is accurate on its side of one half.
  log_others = tf.where(
    log_prob > -math.log(2.0),
    tf.math.log(-tf.math.expm1(log_prob)),
    tf.math.log1p(-tf.exp(log_prob)),
  )
  return tf.exp(math.log(k) + (k - 1) * log_others)


class TopK(RewardLoss):
  """-ω_i λ_K(a_i) r_i log p(a_i), p = softmax(logits), ω_i from sg(p(a_i)) / β_i."""

  compiles = True
  reads_factors = True

  def __init__(
    self, importance: ImportanceWeights = DEFAULT_WEIGHTS, slate_size: int = 30, **kwargs
  ):
    """Args:
    importance: how weights are made.
    slate_size: K; 1 makes it `IPS`.
    """
    super().__init__(importance, **kwargs)
    if slate_size < 1:
      raise InputError(f"top-K: slate_size must be at least 1, got {slate_size}")
    self.slate_size = slate_size

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_p = x.softmax_log_prob()
    ratio, weights = self.importance(log_p, x.propensities)
    multiplier = top_k_multiplier(log_p, self.slate_size)
    return LossTerms(ips(log_p, multiplier * weights, x.rewards), ratio, weights)
