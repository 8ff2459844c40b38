"""Doubly robust: a reward model answers for all actions, the log corrects it where it can."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_twostage.losses.base import EstimatorLoss, LossInputs, LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, WeightedLoss
from tf_twostage.losses.ips import ips


def doubly_robust(
  log_prob_actions: tf.Tensor,
  probabilities: tf.Tensor,
  weights: tf.Tensor,
  rewards: tf.Tensor,
  predicted_rewards: tf.Tensor,
  predicted_rewards_of_actions: tf.Tensor,
) -> tf.Tensor:
  """-Σ_a π(a) rhat(a) - ω_i (r_i - rhat(a_i)) log π(a_i).

  With ω = π/β the gradient is that of -E[r] under π, unbiased whatever rhat is; the nearer rhat,
  the smaller the variance. rhat = 0 makes it `ips`, whose form the correction keeps, so that a
  clipped row still learns. With clipped weights only a right rhat keeps it unbiased.

  Args:
    log_prob_actions: [B], log π(a_i).
    probabilities: [B, N], π.
    weights: [B], ω_i, without gradient.
    rewards: [B].
    predicted_rewards: [B, N], rhat.
    predicted_rewards_of_actions: [B], rhat(a_i).

  Returns:
    [B].

  References:
    [Dudik14] Dudik, Erhan, Langford, Li, Doubly Robust Policy Evaluation and Optimization,
      Statistical Science 29, 2014, equation 5.
  """
  direct = tf.reduce_sum(probabilities * predicted_rewards, axis=1)
  return ips(log_prob_actions, weights, rewards - predicted_rewards_of_actions) - direct


class DoublyRobust(WeightedLoss, EstimatorLoss):
  """-Σ_a π(a) rhat(a) - ω_i (r_i - rhat(a_i)) log π(a_i), rhat = reward_model(ranker_logits).

  Any reward model will do: pass its outputs as `ranker_logits`. A baseline is taken off rewards
  and rhat alike and moves no gradient: rhat is a baseline already.
  """

  needs_ranker = True

  def __init__(
    self,
    importance: ImportanceWeights = DEFAULT_WEIGHTS,
    reward_model: str | Callable[[tf.Tensor], tf.Tensor] = "sigmoid",
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    reward_model: from ranker_logits [B, N] to rhat [B, N]: "sigmoid" for a logistic ranker,
      "linear" where ranker_logits are rhat itself, or a function.
    """
    super().__init__(importance, **kwargs)
    self.reward_model = tf.keras.activations.get(reward_model)

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    ratio, weights = self.importance(log_prob, x.propensities)
    predicted = tf.stop_gradient(self.reward_model(x.ranker_logits)) - self.baseline
    loss = doubly_robust(
      log_prob,
      self.probabilities(x),
      weights,
      x.rewards,
      predicted,
      tf.gather(predicted, x.actions, batch_dims=1),
    )
    return LossTerms(loss, ratio, weights, share)

  def get_config(self):
    return {
      **super().get_config(),
      "reward_model": tf.keras.activations.serialize(self.reward_model),
    }
