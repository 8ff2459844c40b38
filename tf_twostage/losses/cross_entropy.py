"""Likelihood losses, which read no propensities."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import (
  EstimatorLoss,
  LossInputs,
  LossTerms,
  ScaledLoss,
  weighted_log_prob,
)
from tf_twostage.rewards import to_labels


class CrossEntropy(EstimatorLoss):
  """Reward-weighted negative log-likelihood, -r_i log π(a_i).

  There is no baseline: rows with less reward would push their item down for ever.
  """

  needs_all_rows = ""

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    return LossTerms(-weighted_log_prob(x.rewards, log_prob), ranker_probability=share)


class BinaryCrossEntropy(ScaledLoss):
  """-y_i log sigmoid(z_i) - (1 - y_i) log sigmoid(-z_i), z_i the logged item's logit; no softmax.

  The label y_i is min(r_i / reward_scale, 1). Rows without reward push their item down; the logits
  of other items get no gradient. Fits the behavior policy, and generators that estimate rewards.

  With `distillation` λ, λ of the label is sigmoid(g_i), g_i the ranker's logit. An item
  that was always rewarded then stops at logit(1 - λ + λ sigmoid(g_i)), however often it was logged:
  the log determines which items are candidates, the ranker their order.

  References:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2: the
      mixture of hard and soft labels.
  """

  pointwise = True
  needs_all_rows = "it fits rewards, and would see labels near 1 alone"

  def __init__(self, distillation: float = 0.0, **kwargs):
    """Args:
    distillation: λ in [0, 1], weight of the ranker's prediction in the label; needs a logistic
      ranker.
    """
    super().__init__(**kwargs)
    if not 0 <= distillation <= 1:
      raise InputError(f"BinaryCrossEntropy: distillation must be in [0, 1], got {distillation}")
    self.distillation = distillation
    self.needs_ranker = distillation > 0

  def evaluate(self, x: LossInputs) -> LossTerms:
    labels = to_labels(x.rewards, self.reward_scale)
    if self.needs_ranker:
      ranker_logits = tf.gather(tf.stop_gradient(x.ranker_logits), x.actions, batch_dims=1)
      soft = tf.where(tf.math.is_finite(ranker_logits), tf.sigmoid(ranker_logits), np.nan)
      labels += self.distillation * (soft - labels)
    return LossTerms(_logistic(labels, tf.gather(x.logits, x.actions, batch_dims=1)))


class RegressionRanking(EstimatorLoss, ScaledLoss):
  """Binary cross-entropy of every row, and w times the cross-entropy of rewarded rows.

  -y_i log sigmoid(z_i) - (1 - y_i) log sigmoid(-z_i) - w y_i log π(a_i), z_i the logged item's
  logit. The first part learns from rows without a reward, too, which items to leave out; the
  second puts rewarded items before all others of the catalogue, logged or not. The label y_i is
  min(r_i / reward_scale, 1).

  References:
    Sculley, Combined regression and ranking, KDD 2010: the sum of both losses.
  """

  needs_all_rows = "it fits rewards, and would see labels near 1 alone"

  def __init__(self, ranking_weight: float = 0.3, **kwargs):
    """Args:
    ranking_weight: w.
    """
    super().__init__(**kwargs)
    if not 0 < ranking_weight < np.inf:
      raise InputError(
        f"RegressionRanking: ranking_weight must be positive, got {ranking_weight}; without ranking"
        " it is binary_cross_entropy"
      )
    self.ranking_weight = ranking_weight

  def evaluate(self, x: LossInputs) -> LossTerms:
    labels = to_labels(x.rewards, self.reward_scale)
    log_prob, share = self.logged(x)
    loss = _logistic(labels, x.logged_scores())
    loss -= self.ranking_weight * weighted_log_prob(labels, log_prob)
    return LossTerms(loss, ranker_probability=share)


def _logistic(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
  """Logistic loss, [B]: NaN at +inf, and 0 at -inf where the label is 0."""
  logits *= tf.where(logits == np.inf, tf.constant(np.nan, logits.dtype), 1.0)
  loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
  return tf.where((labels != 0) | (logits != -np.inf), loss, 0.0)
