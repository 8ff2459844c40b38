"""The first stage: a two-tower softmax over the whole catalogue, with an injected objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.models.encoders import Codes, TwoTower
from tf_twostage.models.health import PolicyHealth

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
