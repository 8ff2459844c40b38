"""Objectives that need no clipping: their weights grow more slowly than π / β."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import (
  EstimatorLoss,
  LossInputs,
  LossTerms,
  ScaledLoss,
  weighted_log_prob,
)
from tf_twostage.losses.importance import MAX_LOG_RATIO, log_ratio
from tf_twostage.rewards import to_labels


class SmoothedLoss(EstimatorLoss):
  """A loss with weights of its own; a row without a reward adds nothing."""

  needs_all_rows = ""
  uses_weights = True

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    ratio = tf.exp(log_ratio(log_prob, x.propensities))
    loss, weights = self.smoothed(log_prob, x.propensities, x.rewards)
    return LossTerms(loss, tf.stop_gradient(ratio), tf.stop_gradient(weights), share)

  def smoothed(
    self, log_prob: tf.Tensor, propensities: tf.Tensor, rewards: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss [B], and the weights [B] of the rewards (or labels) in its gradient."""
    raise NotImplementedError


class WeightedLogLikelihood(SmoothedLoss):
  """-(r_i / max(β_i, τ)) log π(a_i): cross-entropy, weighted by the logging policy alone.

  With the generator's softmax it is convex in the logits, unlike losses with π in the weight. Where
  β >= τ its optimum has π(a) proportional to the expected reward of a. τ = 1 is cross-entropy.

  References:
    Aouali, Sakhi, Off-Policy Learning in Large Action Spaces: Optimization Matters More Than
      Estimation, arXiv 2509.03456.
  """

  def __init__(self, propensity_floor: float = 0.01, **kwargs):
    """Args:
    propensity_floor: τ in [0, 1], smaller propensities count as τ.
    """
    super().__init__(**kwargs)
    _check_share(self, "propensity_floor", propensity_floor)
    self.propensity_floor = propensity_floor

  def smoothed(self, log_prob, propensities, rewards):
    weights = 1 / tf.maximum(propensities, self.propensity_floor)
    return -weighted_log_prob(weights * rewards, log_prob), weights


class ExponentialSmoothing(SmoothedLoss):
  """-r_i π(a_i) / β_i^α: the risk of IPS, with less weight on small propensities. α = 1 is IPS.

  References:
    Aouali, Brunel, Rohde, Korba, Exponential Smoothing for Off-Policy Learning, ICML 2023.
  """

  def __init__(self, propensity_exponent: float = 0.7, **kwargs):
    """Args:
    propensity_exponent: α in [0, 1]; smaller is more biased and less variable.
    """
    super().__init__(**kwargs)
    _check_share(self, "propensity_exponent", propensity_exponent)
    self.propensity_exponent = propensity_exponent

  def smoothed(self, log_prob, propensities, rewards):
    log_weights = log_prob - self.propensity_exponent * tf.math.log(propensities)
    weights = tf.exp(tf.minimum(log_weights, MAX_LOG_RATIO))
    return -weights * rewards, weights


class LogarithmicSmoothing(SmoothedLoss, ScaledLoss):
  """-log(1 + λ ω_i y_i) / λ, ω = π / β: the risk of IPS with weights ω / (1 + λ ω y).

  y_i is the label min(r_i / reward_scale, 1), so λ does not depend on the unit of the reward. The
  logarithm is below ω y, in the mean by about λ/2 of its second moment: it is pessimistic about
  policies far from the log. λ = 0 would be IPS.

  References:
    Sakhi, Aouali, Alquier, Chopin, Logarithmic Smoothing for Pessimistic Off-Policy Evaluation,
      Selection and Learning, NeurIPS 2024.
  """

  def __init__(self, log_smoothing: float = 1.0, **kwargs):
    """Args:
    log_smoothing: λ, above 0; about 1 / sqrt(n) estimates the value with n rows best, larger ones
      learn better.
    """
    super().__init__(**kwargs)
    if not 0 < log_smoothing < math.inf:
      raise InputError(
        f"LogarithmicSmoothing: log_smoothing must be positive and finite, got {log_smoothing}"
      )
    self.log_smoothing = log_smoothing

  def smoothed(self, log_prob, propensities, rewards):
    log_weights = log_ratio(log_prob, propensities)
    labels = to_labels(rewards, self.reward_scale)
    log_gains = log_weights + tf.math.log(self.log_smoothing * labels)
    # Of 1 + exp(log_gains), whose exponential could overflow.
    log_sums = tf.nn.softplus(log_gains)
    return -log_sums / self.log_smoothing, tf.exp(log_weights - log_sums)


def _check_share(loss: SmoothedLoss, name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise InputError(f"{type(loss).__name__}: {name} must be in [0, 1], got {value}")
