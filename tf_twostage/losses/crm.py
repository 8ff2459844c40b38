"""Counterfactual risk minimization: losses whose batch mean is an estimate of -E[r] under π.

A risk -ω_i r_i carries its gradient in ω = π/β itself. Since dω = ω d log π, that gradient is
that of -sg(ω_i) r_i log π(a_i) (`ips`), with one difference: where ω is clipped, the risk is
flat and the row learns nothing, while `ips` still learns with the clipped weight.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import EstimatorLoss, LossInputs, LossTerms
from tf_twostage.losses.importance import (
  CAPPED_WEIGHTS,
  DEFAULT_WEIGHTS,
  ImportanceWeights,
  RewardLoss,
  WeightedLoss,
)
from tf_twostage.losses.replicas import batch_sum


def poem(
  weights: tf.Tensor, rewards: tf.Tensor, *, penalty: float, self_normalized: bool = False
) -> tf.Tensor:
  """-ω_i r_i + λ sqrt(Var / n): the mean is the risk plus λ of its standard errors.

  Var is the sample variance (n - 1) of ω_i r_i. Self-normalised weights estimate a ratio, whose
  linearisation has ω_i (r_i - Σω r / Σω) in place of ω_i r_i. One row has no variance.

  Args:
    weights: [B], ω_i, differentiable.
    rewards: [B].
    penalty: λ.
    self_normalized: whether weights were divided by their batch mean.

  Returns:
    [B]; every row has the penalty of the global batch, of n rows, so that the batch mean is the
    objective and has its gradient.

  References:
    [SJ15] Swaminathan, Joachims, Batch Learning from Logged Bandit Feedback through Counterfactual
      Risk Minimization, JMLR 16, 2015, section 5; [SJ15b], section 5, where self-normalised.
  """
  risk = -weights * rewards
  total, rows = batch_sum(risk)
  mean = tf.math.divide_no_nan(total, rows)
  squares, _ = batch_sum(tf.square(risk - mean * (weights if self_normalized else 1.0)))
  squared_error = tf.math.divide_no_nan(squares, rows * (rows - 1))
  varies = squared_error != 0  # the slope of sqrt at 0 is infinite
  return risk + penalty * tf.where(varies, tf.sqrt(tf.where(varies, squared_error, 1.0)), 0.0)


class RiskLoss(WeightedLoss, EstimatorLoss):
  """A loss that learns through its weights, which therefore must depend on the policy."""

  def __init__(self, importance: ImportanceWeights = DEFAULT_WEIGHTS, **kwargs):
    """Args:
    importance: how weights are made; not by "none".
    """
    super().__init__(importance, **kwargs)
    if importance.method == "none":
      raise InputError(
        f"{type(self).__name__} learns through its importance weights, which method 'none' makes"
        " constant: use clip or shrink"
      )


class SNIPS(RiskLoss):
  """-ω_i r_i / mean(ω): the batch mean is the ratio -Σ ω r / Σ ω, and so is its gradient.

  The mean is that of the global batch and is differentiated. Weights are normalised even if
  `importance` does not ask for it. There is no baseline: it would shift the ratio alone.

  References:
    [SJ15b] Swaminathan, Joachims, The Self-Normalized Estimator for Counterfactual Learning,
      NeurIPS 2015, equation 8.
  """

  needs_all_rows = (
    "it divides by the weights of all rows: if every reward is 1, it is the constant -1"
  )

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    importance = dataclasses.replace(self.importance, self_normalize=True)
    ratio, weights = importance(log_prob, x.propensities, differentiable=True)
    return LossTerms(-weights * x.rewards, ratio, weights, share)


class POEM(RiskLoss, RewardLoss):
  """-ω_i r_i + λ sqrt(Var / n): the risk of clipped IPS plus a penalty on its variance; see `poem`.

  Variance and n are those of the batch. The standard error of a batch of B rows is sqrt(n / B)
  times that of a log of n rows: scale λ by sqrt(B / n) to penalise the log's.
  """

  def __init__(
    self,
    importance: ImportanceWeights = CAPPED_WEIGHTS,
    variance_penalty: float = 1.0,
    **kwargs,
  ):
    """Args:
    importance: how weights are made; with self_normalize this is Norm-POEM [SJ15b].
    variance_penalty: λ, number of standard errors added to the risk; 0 leaves the IPS risk.
    """
    super().__init__(importance, **kwargs)
    if not 0 <= variance_penalty < math.inf:
      raise InputError(f"POEM: variance_penalty must be at least 0, got {variance_penalty}")
    self.variance_penalty = variance_penalty
    if importance.self_normalize:
      self.needs_all_rows = SNIPS.needs_all_rows
    elif variance_penalty:
      self.needs_all_rows = "its variance is that of ω r over all rows, most of which may be 0"

  def _check_baseline(self) -> None:
    if self.importance.self_normalize:
      raise InputError(
        "POEM: with self-normalised weights a baseline changes nothing but the value: give"
        " self_normalize=false, or no baseline"
      )

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_prob, share = self.logged(x)
    ratio, weights = self.importance(log_prob, x.propensities, differentiable=True)
    loss = poem(
      weights,
      x.rewards,
      penalty=self.variance_penalty,
      self_normalized=self.importance.self_normalize,
    )
    return LossTerms(loss, ratio, weights, share)
