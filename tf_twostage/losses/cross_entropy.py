"""Cross-entropy over the catalogue: what a generator learns when nobody corrects the log."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.losses.base import LossTerms, OffPolicyLoss, log_prob


def cross_entropy(log_prob_actions: tf.Tensor, rewards: tf.Tensor) -> tf.Tensor:
  """Reward-weighted negative log-likelihood, -r_i log π(a_i).

  Args:
    log_prob_actions: [B], log π(a_i).
    rewards: [B].

  Returns:
    [B].
  """
  return -rewards * log_prob_actions


class CrossEntropy(OffPolicyLoss):
  """-r_i log p(a_i), p = softmax(logits); propensities are not read."""

  def terms(self, logits, actions, propensities, rewards, ranker_logits=None) -> LossTerms:
    x = self.checked(logits, actions, propensities, rewards)
    return LossTerms(cross_entropy(log_prob(x.logits, x.actions), x.rewards))
