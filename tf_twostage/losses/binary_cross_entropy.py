"""Pointwise logistic loss: the logged item's logit against its reward, no softmax."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.errors import InputError
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

  It fits the behavior policy, and generators that estimate rewards. Other items' logits get no
  gradient; propensities are not read.

  With `distillation` λ the label is (1 - λ) r_i + λ sigmoid(g_i), g_i the ranker's logit. An item
  that was never unrewarded then rises no further than logit(1 - λ + λ sigmoid(g_i)) however often
  it was logged: the log says which items are candidates, the ranker in which order.

  References:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2: the
      mixture of hard and soft labels.
  """

  def __init__(self, distillation: float = 0.0, **kwargs):
    """Args:
    distillation: λ in [0, 1], the ranker's part of the label; its logits must be those of a
      logistic ranker.
    """
    super().__init__(**kwargs)
    if not 0 <= distillation <= 1:
      raise InputError(f"BinaryCrossEntropy: distillation must be in [0, 1], got {distillation}")
    self.distillation = distillation
    self.needs_ranker = distillation > 0

  def evaluate(self, x: LossInputs) -> LossTerms:
    labels = x.rewards
    if self.needs_ranker:
      taught = tf.sigmoid(tf.gather(tf.stop_gradient(x.ranker_logits), x.actions, batch_dims=1))
      labels += self.distillation * (taught - labels)
    return LossTerms(binary_cross_entropy(tf.gather(x.logits, x.actions, batch_dims=1), labels))
