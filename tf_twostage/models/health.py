"""Epoch-wide diagnostics of off-policy training, as Keras metrics."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_twostage.distinct import inclusion_probabilities
from tf_twostage.losses.base import LossTerms, OffPolicyLoss
from tf_twostage.losses.replicas import all_rows
from tf_twostage.policies import FactoredPolicy, SoftmaxPolicy, entropy

_STEPS = 16  # of a pointwise loss, of which one measures the entropy over the catalogue
_ROWS = 16  # of a batch, whose candidates' entropy is measured: inclusion costs more than a softmax


class Maximum(tf.keras.metrics.Metric):
  """The largest value of all replicas since the last reset; at least 0."""

  def __init__(self, name: str):
    super().__init__(name=name)
    # TensorFlow can only add or average variables of replicas, so each holds the maximum of all.
    self._maximum = self.add_weight(
      name="maximum",
      shape=[1],
      initializer="zeros",
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )

  def update_state(self, values, sample_weight=None):
    largest = tf.reduce_max(all_rows(tf.reduce_max(values)[tf.newaxis]), keepdims=True)
    # Updates this replica's variable; `assign` would synchronise the replicas once more.
    tf.raw_ops.ResourceScatterMax(resource=self._maximum.handle, indices=[0], updates=largest)

  def result(self):
    return tf.convert_to_tensor(self._maximum)[0]

  def reset_state(self):
    self._maximum.assign([0.0])  # Keras resets scalars only


class EffectiveSampleShare(tf.keras.metrics.Metric):
  """Effective sample size as a share of the rows: (sum w)^2 / (n sum w^2), in (0, 1]."""

  def __init__(self, name: str):
    super().__init__(name=name)
    self._count = self.add_weight(name="count", initializer="zeros")
    self._sum = self.add_weight(name="sum", initializer="zeros")
    self._squares = self.add_weight(name="squares", initializer="zeros")

  def update_state(self, weights, sample_weight=None):
    self._count.assign_add(tf.cast(tf.size(weights), tf.float32))
    self._sum.assign_add(tf.reduce_sum(weights))
    self._squares.assign_add(tf.reduce_sum(tf.square(weights)))

  def result(self):
    return tf.math.divide_no_nan(tf.square(self._sum), self._count * self._squares)


class PolicyHealth(tf.keras.layers.Layer):
  """Metrics that show whether off-policy training is sound; one instance for each generator.

  `weight_mean` and `weight_max` use raw ratios, which show a policy leaving the support of the log.
  Shares of clipped weights and the effective sample size use the weights of the loss.
  """

  def __init__(self, objective: OffPolicyLoss):
    super().__init__(name="health")
    self._objective = objective
    self.loss_mean = tf.keras.metrics.Mean("mean_loss")
    self.entropy = tf.keras.metrics.Mean("policy_entropy")
    if objective.uses_weights:
      self.weight_mean = tf.keras.metrics.Mean("weight_mean")
      self.weight_max = Maximum("weight_max")
      importance = getattr(objective, "importance", None)
      self._clips = importance is not None and importance.method == "clip"
      if self._clips:
        self.capped = tf.keras.metrics.Mean("share_capped")
        self.floored = tf.keras.metrics.Mean("share_floored")
      self.sample_share = EffectiveSampleShare("effective_sample_share")
    if objective.uses_ranker_probability:
      self.ranker_probability = tf.keras.metrics.Mean("ranker_probability")

  def update_pairs(
    self, terms: LossTerms, logits: Callable[[], tf.Tensor], step: tf.Tensor | int
  ) -> None:
    """Adds a batch of a pointwise loss, with the entropy of its `logits` in some steps only.

    These are the first step of an epoch, every 16th, and those whose loss is not finite.
    """
    due = (self.entropy.count == 0) | (step % _STEPS == 0)
    due |= ~tf.reduce_all(tf.math.is_finite(terms.loss))
    mean = tf.cond(
      due, lambda: tf.reduce_mean(self.policy_entropy(logits())), lambda: tf.constant(0.0)
    )
    self.update(terms, mean, tf.cast(due, tf.float32))

  def update(
    self, terms: LossTerms, policy_entropy: tf.Tensor, weight: tf.Tensor | None = None
  ) -> None:
    """Adds a batch: the terms of its loss, and `policy_entropy` with a weight."""
    self.loss_mean.update_state(terms.loss)
    self.entropy.update_state(policy_entropy, weight)
    if self._objective.uses_weights:
      self.weight_mean.update_state(terms.ratio)
      self.weight_max.update_state(terms.ratio)
      if self._clips:
        importance = self._objective.importance
        self.capped.update_state(tf.cast(terms.ratio >= importance.cap, tf.float32))
        self.floored.update_state(tf.cast(terms.ratio <= importance.floor, tf.float32))
      self.sample_share.update_state(terms.weights)
    if self._objective.uses_ranker_probability:
      self.ranker_probability.update_state(terms.ranker_probability)

  def policy_entropy(
    self,
    logits: tf.Tensor,
    log_q: tf.Tensor | None = None,
    factors: tuple[tf.Tensor, tf.Tensor] | None = None,
  ) -> tf.Tensor:
    """Entropy of a candidate's distribution, [B] or less.

    It is estimated where the N items are a `losses.Support`, whose `log_q` [N] is then given.
    `factors` are those of `OffPolicyLoss.terms`.
    """
    if factors is not None:
      return FactoredPolicy(*factors).entropy()
    if self._objective.stage == "distinct":
      copies = None if log_q is None else tf.exp(-log_q)
      pi = inclusion_probabilities(logits[:_ROWS], self._objective.slate_size, copies)
      p = pi / tf.reduce_sum(pi, 1, keepdims=True)
      candidates = entropy(p)
    elif log_q is None:
      return SoftmaxPolicy(logits).entropy()
    else:
      policy = SoftmaxPolicy(logits - log_q)
      p, candidates = policy.probabilities(), policy.entropy()
    if log_q is None:
      return candidates
    # An item of a support represents several items; `own` is its log-probability less that of one.
    own = tf.where(tf.math.is_finite(log_q), log_q, 0.0)
    return candidates - tf.linalg.matvec(p, own)
