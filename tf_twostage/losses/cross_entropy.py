"""Cross-entropy over the catalogue: what a generator learns when nobody corrects the log."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.losses.base import EstimatorLoss, LossInputs, LossTerms


def cross_entropy(log_prob_actions: tf.Tensor, rewards: tf.Tensor) -> tf.Tensor:
  """Reward-weighted negative log-likelihood, -r_i log π(a_i).

  Args:
    log_prob_actions: [B], log π(a_i).
    rewards: [B].

  Returns:
    [B].
  """
  return -rewards * log_prob_actions


class CrossEntropy(EstimatorLoss):
  """-r_i log π(a_i); propensities are not read."""

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    return LossTerms(cross_entropy(log_prob, x.rewards), ranker_probability=share)
