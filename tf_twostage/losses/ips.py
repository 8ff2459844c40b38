"""Inverse propensity scoring on the generator alone ("1-IPS")."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.losses.base import LossTerms, log_prob
from tf_twostage.losses.importance import WeightedLoss


def ips(log_prob_actions: tf.Tensor, weights: tf.Tensor, rewards: tf.Tensor) -> tf.Tensor:
  """-ω_i r_i log π(a_i): with ω = π/β, the gradient is that of -E[r] under π, unbiased.

  Args:
    log_prob_actions: [B], log π(a_i).
    weights: [B], ω_i, without gradient (see `ImportanceWeights`).
    rewards: [B].

  Returns:
    [B].

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020.
  """
  return -weights * rewards * log_prob_actions


class IPS(WeightedLoss):
  """-ω_i r_i log p(a_i), p = softmax(logits), ω_i from sg(p(a_i)) / β_i."""

  def terms(self, logits, actions, propensities, rewards, ranker_logits=None) -> LossTerms:
    x = self.checked(logits, actions, propensities, rewards)
    log_p = log_prob(x.logits, x.actions)
    ratio, weights = self.importance(log_p, x.propensities)
    return LossTerms(ips(log_p, weights, x.rewards), ratio, weights)
