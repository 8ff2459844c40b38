"""The second stage: scores a user in a context against items, fitted pointwise on the log."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_twostage.models.encoders import Codes, FeatureLookup, TwoTower
from tf_twostage.models.generator import Batch, RankerLogits
from tf_twostage.models.two_stage import products
from tf_twostage.rewards import to_labels


def usual_logit(total: float, rows: int) -> float:
  """Logit of the smoothed mean of rewards in [0, 1] with sum `total`; always finite."""
  usual = (total + 1) / (rows + 2)
  return float(np.log(usual / (1 - usual)))


class Ranker(tfrs.Model):
  """A two-tower model that also reads the context; binary cross-entropy on labels of rewards."""

  def __init__(
    self,
    towers: TwoTower,
    context_lookup: FeatureLookup,
    prior: float = 0.0,
    reward_scale: float = 1.0,
  ):
    """Args:
    towers: users with context (`use_context=True`) and items.
    context_lookup: the context features of the schema.
    prior: logit of the mean label, added to the towers' logits. Without it, items that are
      never logged would keep a probability of 1/2, above all others where rewards are rare.
    reward_scale: the reward of the label 1; see `rewards`.
    """
    super().__init__()
    self.towers = towers
    self._context_lookup = context_lookup
    self._prior = prior
    self._reward_scale = reward_scale
    self.scale = 1.0
    self._loss_mean = tf.keras.metrics.Mean("mean_loss")
    self._task = tfrs.tasks.Ranking(
      loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
      metrics=[tf.keras.metrics.AUC(from_logits=True, name="auc")],
    )

  def codes(self, inputs: Batch) -> Codes:
    """User codes and context codes of a batch."""
    return {**inputs["user"], **self._context_lookup(inputs["context"])}

  def call(self, inputs: Batch) -> tf.Tensor:
    """Ranker logits over the catalogue, [B, N]."""
    return self.logits(inputs)

  def logits(self, batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
    """As `RankerLogits`, with gradients."""
    users = self.towers.query(self.codes(batch))
    if items is None or items.shape.rank == 1:
      return products(users, self.scale * self.towers.candidates(items)) + self._prior
    return products(users, self.scale * self.towers.candidates(), items) + self._prior

  def pair_scores(self, inputs: Batch) -> tf.Tensor:
    """Scores of the logged items, [B]."""
    logits = self.towers.pair_logits(self.codes(inputs), inputs["action"])
    return self.scale * logits + self._prior

  def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
    """Binary cross-entropy of the logged item's score against the label of its reward."""
    logits, labels = self.pair_scores(inputs), to_labels(inputs["reward"], self._reward_scale)
    loss = self._task(labels=labels[:, tf.newaxis], predictions=logits[:, tf.newaxis])
    self._loss_mean.update_state(loss)
    return loss + self.touched_penalty(inputs, inputs["action"])

  def touched_penalty(self, batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
    """The penalty of `sparse_l2` for what a batch reads; see `TwoTower`."""
    return self.towers.touched_penalty(self.codes(batch), items)

  def frozen(self) -> RankerLogits:
    """The fitted ranker as a function of a batch; item vectors are computed once, here."""
    vectors = self.scale * self.towers.candidates()

    def ranker_logits(batch: Batch, items: tf.Tensor | None = None) -> tf.Tensor:
      return products(self.towers.query(self.codes(batch)), vectors, items) + self._prior

    return ranker_logits


class ImitatingRanker(Ranker):
  """Learns the scores that another ranker gave, by least squares.

  The towers learn (score - mean) / scale, of the scores' mean and standard deviation. The scores
  come as the context feature `SCORE` of a batch, which no lookup reads.
  """

  SCORE = "ranker_score"

  def __init__(self, towers: TwoTower, context_lookup: FeatureLookup, mean: float, scale: float):
    super().__init__(towers, context_lookup, mean)
    self.scale = scale

  def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
    """Mean squared error of the logged item's score, in units of `scale`."""
    error = (
      self.pair_scores(inputs) - tf.cast(inputs["context"][self.SCORE], tf.float32)
    ) / self.scale
    loss = tf.reduce_mean(tf.square(error))
    self._loss_mean.update_state(loss)
    return loss + self.towers.touched_penalty(self.codes(inputs), inputs["action"])
