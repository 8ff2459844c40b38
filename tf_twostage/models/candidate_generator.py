"""The first stage: a two-tower softmax over the whole catalogue, with an injected objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.models.encoders import Codes, TwoTower
from tf_twostage.models.health import PolicyHealth
from tf_twostage.replicas import num_replicas

Batch = Mapping[str, Any]


class CandidateGenerator(tfrs.Model):
  """Learns from log rows: user codes, context, action, propensity, reward.

  The behavior policy is the same class with a pointwise objective.
  """

  def __init__(
    self,
    towers: TwoTower,
    objective: OffPolicyLoss,
    ranker_logits: Callable[[Batch], tf.Tensor] | None = None,
  ):
    """Args:
    towers: users and items.
    objective: maps logits [B, N] and the logged columns to a loss [B].
    ranker_logits: maps a batch to ranker logits [B, N]; objectives with `needs_ranker` read
      it. A function, not a layer: the ranker is fixed and no part of this model's weights.
    """
    super().__init__()
    if objective.needs_ranker and ranker_logits is None:
      raise ValueError(f"{type(objective).__name__} needs ranker_logits")
    self.towers = towers
    self.objective = objective
    self._ranker_logits = (
      ranker_logits if ranker_logits and objective.needs_ranker else lambda inputs: None
    )
    self._health = PolicyHealth(objective)
    self._penalty = tf.keras.metrics.Mean("regularization_loss")

  def call(self, user: Codes) -> tf.Tensor:
    """Logits [B, N] of the policy."""
    return self.towers(user)

  def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
    """The mean loss of a batch; its diagnostics go to the model's metrics."""
    logits = self.towers(inputs["user"])
    terms = self.objective.terms(
      logits,
      inputs["action"],
      inputs["propensity"],
      inputs["reward"],
      ranker_logits=self._ranker_logits(inputs),
    )
    self._health.update(logits, terms)
    return tf.reduce_mean(terms.loss)

  def train_step(self, inputs: Batch) -> dict[str, tf.Tensor]:
    """A step along the gradient of the global batch's mean loss with the L2 penalty.

    Optimizers add up what replicas with equal parts of the batch find, and Keras adds up what they
    return: each has its share of the mean. Metrics are updated, but not read, which would be an
    exchange between replicas for each of their variables.

    Returns:
      "total_loss": of the global batch before the step.
    """
    with tf.GradientTape() as tape:
      loss = self.compute_loss(inputs, training=True)
      penalty = tf.reduce_sum(self.losses)
      total_loss = (loss + penalty) / num_replicas()
    gradients = tape.gradient(total_loss, self.trainable_variables)
    self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
    self._penalty.update_state(penalty)
    return {"total_loss": total_loss}
