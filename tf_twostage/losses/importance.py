"""Importance weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, OffPolicyLoss
from tf_twostage.losses.replicas import batch_sum

# exp of this is finite in float32, and so is the sum over a batch.
MAX_LOG_RATIO = 80.0
METHODS = ("clip", "shrink", "none")


def log_ratio(log_prob_actions: tf.Tensor, propensities: tf.Tensor) -> tf.Tensor:
  """log π(a_i) - log β_i, at most `MAX_LOG_RATIO`: [B]."""
  return tf.minimum(log_prob_actions - tf.math.log(propensities), MAX_LOG_RATIO)


@dataclasses.dataclass(frozen=True)
class ImportanceWeights:
  """ω_i from π(a_i) / β_i: corrected by `method`, then divided by the batch mean.

  Attributes:
    cap: c1, largest weight before normalising, `math.inf` for none; of the method clip.
    floor: c2, smallest weight before normalising, 0 for none; of the method clip. Items of
      probability zero have weight 0.
    self_normalize: divide the weights by their mean over the global batch.
    method: clip: to [floor, cap]; shrink: λω / (ω² + λ), which is near ω for small ω, has its
      maximum sqrt(λ)/2 at ω = sqrt(λ), and tends to 0 for large ω; none: all weights are 1.
    shrinkage: λ of the method shrink.

  References:
    clip: [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020.
    shrink: Su, Dimakopoulou, Krishnamurthy, Dudik, Doubly robust off-policy evaluation with
      shrinkage, ICML 2020, section 4 ("optimistic").
  """

  cap: float = 10.0
  floor: float = 0.01
  self_normalize: bool = True
  method: str = "clip"
  shrinkage: float = 100.0

  def __post_init__(self):
    if not 0 <= self.floor <= self.cap or self.cap == 0:
      raise InputError(
        f"importance weights: need 0 <= floor <= cap and cap > 0, got floor={self.floor},"
        f" cap={self.cap}"
      )
    if self.method not in METHODS:
      raise InputError(
        f"importance weights: method must be one of {', '.join(METHODS)}, got {self.method!r}"
      )
    if not 0 < self.shrinkage < math.inf:
      raise InputError(
        f"importance weights: shrinkage must be positive and finite, got {self.shrinkage}"
      )

  @property
  def vanish(self) -> bool:
    """Whether a weight goes to 0 with π(a_i)."""
    floored = self.method == "none" or (self.method == "clip" and self.floor > 0)
    return not (floored or self.self_normalize)

  def __call__(
    self,
    log_prob_actions: tf.Tensor,
    propensities: tf.Tensor,
    *,
    differentiable: bool = False,
    shares: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """The ratio of target to behavior policy, and the weights made from it.

    Args:
      log_prob_actions: [B], log π(a_i).
      propensities: [B] in (0, 1], β_i.
      differentiable: whether weights carry the gradient of log_prob_actions, as risks need it:
        dω_i = ω_i d log π(a_i) inside the clip and 0 outside, so that a clipped row learns
        nothing. The divisor of self-normalising is differentiated as well.
      shares: [B], ranker probabilities that the loss multiplies weights with; if given,
        self-normalising makes the mean of the products 1.

    Returns:
      ratio [B], before correction (finite: at most exp(80)), without gradient; and weights [B].
    """
    if not differentiable:
      log_prob_actions = tf.stop_gradient(log_prob_actions)
    log_omega = log_ratio(log_prob_actions, propensities)
    ratio = tf.exp(log_omega)
    if self.method == "none":
      weights = tf.ones_like(ratio)
    elif self.method == "shrink":
      # log of ω / (1 + ω²/λ), whose square would overflow.
      weights = tf.exp(log_omega - tf.nn.softplus(2 * log_omega - math.log(self.shrinkage)))
    else:
      weights = tf.clip_by_value(ratio, self.floor, self.cap)
      weights = tf.where(log_prob_actions != -math.inf, weights, 0.0)
    if self.self_normalize:
      total, rows = batch_sum(weights if shares is None else weights * shares)
      weights = tf.math.divide_no_nan(weights * rows, total)
    return tf.stop_gradient(ratio), weights


DEFAULT_WEIGHTS = ImportanceWeights()
# Capped only: ω log π then goes to 0 with π, so that rows that push their item down, such as those
# with less reward than predicted, leave the loss bounded.
CAPPED_WEIGHTS = ImportanceWeights(floor=0.0, self_normalize=False)


class WeightedLoss(OffPolicyLoss):
  """A loss that reads importance weights."""

  uses_weights = True

  def __init__(self, importance: ImportanceWeights = DEFAULT_WEIGHTS, **kwargs):
    """Args:
    importance: how weights are made.
    """
    super().__init__(**kwargs)
    self.importance = importance

  def get_config(self) -> dict[str, Any]:
    return {**super().get_config(), "importance": dataclasses.asdict(self.importance)}

  @classmethod
  def from_config(cls, config):
    return cls(**{**config, "importance": ImportanceWeights(**config["importance"])})


class RewardLoss(WeightedLoss):
  """A weighted loss with the reward, measured from a baseline, as a factor of each row."""

  needs_all_rows = ""

  def __init__(
    self, importance: ImportanceWeights = DEFAULT_WEIGHTS, baseline: float = 0.0, **kwargs
  ):
    """Args:
    importance: how weights are made.
    baseline: b, subtracted from every reward, so that rows with less push their item down. Above 0
      it needs weights that vanish with π: weight_floor=0 and self_normalize=false.
    """
    super().__init__(importance, **kwargs)
    name = type(self).__name__
    if not math.isfinite(baseline):
      raise InputError(f"{name}: baseline must be finite, got {baseline}")
    self.baseline = baseline
    if baseline:
      self._check_baseline()
      self.needs_all_rows = "a baseline makes it learn from rows without a reward"

  def _check_baseline(self) -> None:
    if self.baseline > 0 and not self.importance.vanish:
      raise InputError(
        f"{type(self).__name__}: with baseline={self.baseline} the loss is unbounded below, since a"
        " row with less reward pushes its item down for ever: give weight_floor=0 and"
        " self_normalize=false (weight_method clip or shrink), or no baseline"
      )

  def _checked(self, *arguments: Any) -> LossInputs:
    x = super()._checked(*arguments)
    return x._replace(rewards=x.rewards - self.baseline)
