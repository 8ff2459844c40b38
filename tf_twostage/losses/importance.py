"""Importance weights: the only place where they are made."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import OffPolicyLoss

# exp of this is finite in float32, and so is the sum over a batch.
MAX_LOG_RATIO = 80.0


@dataclasses.dataclass(frozen=True)
class ImportanceWeights:
  """ω_i = sg(π(a_i)) / β_i, clipped to [floor, cap], then divided by the batch mean.

  Attributes:
    cap: c1, the largest weight before normalising; `math.inf` for none.
    floor: c2, the smallest weight before normalising; 0 for none.
    self_normalize: whether to divide the clipped weights by their mean over the batch.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020.
  """

  cap: float = 10.0
  floor: float = 0.01
  self_normalize: bool = True

  def __post_init__(self):
    if not 0 <= self.floor <= self.cap or self.cap == 0:
      raise InputError(
        f"importance weights: need 0 <= floor <= cap and cap > 0, got floor={self.floor},"
        f" cap={self.cap}"
      )

  def __call__(
    self, log_prob_actions: tf.Tensor, propensities: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """The ratio of target to behavior policy, and the weights made from it.

    Args:
      log_prob_actions: [B], log π(a_i). No gradient flows through it.
      propensities: [B] in (0, 1], β_i.

    Returns:
      ratio [B], before clipping (finite: at most exp(80)), and weights [B].
    """
    log_ratio = tf.stop_gradient(log_prob_actions) - tf.math.log(propensities)
    ratio = tf.exp(tf.minimum(log_ratio, MAX_LOG_RATIO))
    weights = tf.clip_by_value(ratio, self.floor, self.cap)
    if self.self_normalize:
      weights = tf.math.divide_no_nan(weights, tf.reduce_mean(weights))
    return ratio, weights


DEFAULT_WEIGHTS = ImportanceWeights()


class WeightedLoss(OffPolicyLoss):
  """A loss that reads importance weights."""

  uses_weights = True

  def __init__(self, importance: ImportanceWeights = DEFAULT_WEIGHTS, **kwargs):
    """Args:
    importance: how weights are made.
    """
    super().__init__(**kwargs)
    self.importance = importance

  def get_config(self):
    return {**super().get_config(), "importance": dataclasses.asdict(self.importance)}

  @classmethod
  def from_config(cls, config):
    return cls(**{**config, "importance": ImportanceWeights(**config["importance"])})
