"""Pointwise logistic loss: the logged item's logit against its reward, no softmax."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.losses.base import LossInputs, LossTerms, OffPolicyLoss


def binary_cross_entropy(action_logits: tf.Tensor, rewards: tf.Tensor) -> tf.Tensor:
  """-r_i log sigmoid(z_i) - (1 - r_i) log sigmoid(-z_i).

  Args:
    action_logits: [B], z_i.
    rewards: [B] in [0, 1].

  Returns:
    [B].
  """
  return tf.nn.sigmoid_cross_entropy_with_logits(labels=rewards, logits=action_logits)


class BinaryCrossEntropy(OffPolicyLoss):
  """Logistic loss of the logged item's logit; rows without reward push their item down.

  It fits the behavior policy. Other items' logits get no gradient; propensities are not read.
  """

  def evaluate(self, x: LossInputs) -> LossTerms:
    return LossTerms(binary_cross_entropy(tf.gather(x.logits, x.actions, batch_dims=1), x.rewards))
