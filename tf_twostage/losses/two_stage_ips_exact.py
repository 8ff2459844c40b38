"""2-IPS without sampling: Algorithm 1's two terms with the slate expectation as an integral."""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms
from tf_twostage.losses.importance import DEFAULT_WEIGHTS, ImportanceWeights, WeightedLoss
from tf_twostage.policies import two_stage_log_prob


def two_stage_ips_exact(
  log_prob_actions: tf.Tensor,
  ranker_share: tf.Tensor,
  weights: tf.Tensor,
  rewards: tf.Tensor,
  *,
  alpha: float,
) -> tf.Tensor:
  """-r_i ω_i (sg(qbar_i) log p(a_i) + α qbar_i).

  Args:
    log_prob_actions: [B], log p(a_i) of the generator.
    ranker_share: [B], qbar_i, differentiable.
    weights: [B], ω_i, without gradient.
    rewards: [B].
    alpha: α.

  Returns:
    [B].
  """
  inner = tf.stop_gradient(ranker_share) * log_prob_actions + alpha * ranker_share
  return -rewards * weights * inner


class TwoStageIPSExact(WeightedLoss):
  """-r_i ω_i (sg(qbar_i) log p(a_i) + α qbar_i), ω_i from sg(p(a_i)) / β_i.

  With α = 1 and raw weights the gradient is p/β (qbar d log p + d qbar) = dπ / (K β), π = K p qbar:
  that of `IPS(policy="two_stage")`, -sg(π/β) r d log π with d log π = d log p + d log qbar, but for
  the factor K. They differ in what is clipped: here p/β, a weight of stage one alone; there π/β.
  α moves between a generator that takes the ranker as given (0) and the exact gradient (1). It
  is not the α of `TwoStageIPS`, whose slates are drawn at another temperature: there 1e-2 is
  published, here 1e-2 is close to ignoring what other candidates do.
  """

  needs_ranker = True
  uses_ranker_share = True

  def __init__(
    self,
    importance: ImportanceWeights = DEFAULT_WEIGHTS,
    alpha: float = 1.0,
    slate_size: int = 30,
    normalize_shares: bool = False,
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    alpha: α, weight of the gradient through the other candidates; 1 is exact.
    slate_size: K, items of a slate, the logged one counted.
    normalize_shares: as in `TwoStageIPS`, with qbar for q.
    """
    super().__init__(importance, **kwargs)
    if slate_size < 1:
      raise InputError(f"exact 2-IPS: slate_size must be at least 1, got {slate_size}")
    if not alpha >= 0:
      raise InputError(f"exact 2-IPS: alpha must be at least 0, got {alpha}")
    self.alpha = alpha
    self.slate_size = slate_size
    self.normalize_shares = normalize_shares

  def evaluate(self, x: LossInputs) -> LossTerms:
    log_p, log_share = two_stage_log_prob(x.logits, x.ranker_logits, x.actions, self.slate_size)
    share = tf.exp(log_share)
    shares = tf.stop_gradient(share) if self.normalize_shares else None
    ratio, weights = self.importance(log_p, x.propensities, shares=shares)
    loss = two_stage_ips_exact(log_p, share, weights, x.rewards, alpha=self.alpha)
    return LossTerms(loss, ratio, weights, share)
