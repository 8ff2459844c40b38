"""Inverse propensity scoring: "1-IPS" on the generator, exact 2-IPS on the two-stage policy."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.losses.base import (
  EstimatorLoss,
  LossInputs,
  LossTerms,
  weighted_log_prob,
)
from tf_twostage.losses.importance import RewardLoss


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
  return -weighted_log_prob(weights * rewards, log_prob_actions)


class IPS(RewardLoss, EstimatorLoss):
  """-ω_i r_i log π(a_i), ω_i from sg(π(a_i)) / β_i, clipped and normalised.

  A row at the cap still learns, with the cap as its weight; compare the risks in `crm`.
  """

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    ratio, weights = self.importance(log_prob, x.propensities)
    return LossTerms(ips(log_prob, weights, x.rewards), ratio, weights, share)
