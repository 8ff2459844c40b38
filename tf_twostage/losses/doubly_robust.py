"""Doubly robust: a reward model for all actions, corrected by the log."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_twostage.losses.base import EstimatorLoss, LossInputs, LossTerms, ScaledLoss
from tf_twostage.losses.importance import CAPPED_WEIGHTS, ImportanceWeights, WeightedLoss
from tf_twostage.losses.ips import ips
from tf_twostage.policies import is_finite
from tf_twostage.rewards import from_logits


class DoublyRobust(WeightedLoss, EstimatorLoss, ScaledLoss):
  """-Σ_a π(a) rhat(a) - ω_i (r_i - rhat(a_i)) log π(a_i), rhat = reward_model(ranker_logits).

  With ω = π/β the gradient is that of -E[r] under π, unbiased for any rhat; a better rhat lowers
  the variance. With capped weights it is unbiased only if rhat is right. With a floor or normalised
  weights it is unbounded below: a row with less reward than predicted never stops pushing its item
  down. rhat = 0 makes it `ips`, so a capped row still learns. Any reward model will do: pass its
  outputs as `ranker_logits`.

  References:
    [Dudik14] Dudik, Erhan, Langford, Li, Doubly Robust Policy Evaluation and Optimization,
      Statistical Science 29, 2014, equation 5.
  """

  needs_all_rows = (
    "rhat is averaged over all contexts and corrected by all rewards, those of 0 included"
  )
  needs_ranker = True

  def __init__(
    self,
    importance: ImportanceWeights = CAPPED_WEIGHTS,
    reward_model: str | Callable[[tf.Tensor], tf.Tensor] = "sigmoid",
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    reward_model: from ranker logits [B, N] to rhat [B, N]: sigmoid for a logistic ranker (times
      `reward_scale`), linear if the ranker logits are rhat, or a function.
    """
    super().__init__(importance, **kwargs)
    self.reads_factors = False
    self.reward_model = tf.keras.activations.get(reward_model)

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    ratio, weights = self.importance(log_prob, x.propensities)
    ranker_logits = tf.where(is_finite(x.ranker_logits)[:, None], x.ranker_logits, np.nan)
    predicted = tf.stop_gradient(self._predicted(ranker_logits))
    direct = tf.reduce_sum(self.probabilities(x) * predicted, axis=1)
    residuals = x.rewards - tf.gather(predicted, x.actions, batch_dims=1)
    return LossTerms(ips(log_prob, weights, residuals) - direct, ratio, weights, share)

  def _predicted(self, ranker_logits: tf.Tensor) -> tf.Tensor:
    if self.reward_model is tf.keras.activations.sigmoid:
      return from_logits(ranker_logits, self.reward_scale)
    return self.reward_model(ranker_logits)

  def get_config(self):
    reward_model = tf.keras.activations.serialize(self.reward_model)
    return {**super().get_config(), "reward_model": reward_model}
