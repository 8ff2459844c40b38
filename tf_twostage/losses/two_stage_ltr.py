"""Two-stage counterfactual learning to rank: the loss that teaches generator and ranker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_twostage.distinct import inclusion_log_prob
from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms
from tf_twostage.losses.importance import ImportanceWeights, WeightedLoss
from tf_twostage.losses.ips import ips
from tf_twostage.losses.ranking import (
  RANK_WEIGHTS,
  expected_rank_weight,
  rank_weights,
  sample_rivals,
)
from tf_twostage.policies import is_finite

# A slot that is rarely examined has large weights, which are what corrects for its position.
LTR_WEIGHTS = ImportanceWeights(cap=100.0)


class TwoStageLTR(WeightedLoss):
  """-r_i (φ_i log pi(a_i) + ω_i log φ(a_i)), φ_i from sg(φ(a_i)) / ρ_i, ω_i from sg(pi φ) / ρ_i.

  pi is the probability that the generator includes an item in its K distinct candidates, φ the
  expected weight of its rank among them by the ranker, both Plackett-Luce, and ρ the propensity of
  exposure, that is of being shown and examined. pi φ is the expected rank weight of the item, and
  the objective is Σ_i pi(a_i) φ(a_i) r_i / ρ_i.

  The gradient of pi reaches the generator, that of φ the ranker, each with the other stage held
  fixed. The ranker has the gradient of the objective. The generator has that of Σ φ r / ρ log pi:
  it wants the same candidates, those with the largest φ r / ρ, but the gradient of the objective
  vanishes for an item that is hardly ever a candidate, however good it is. That a candidate
  displaces others, and so changes their φ, is left out, as in credit-assigned policy gradients.

  References:
    Gupta, Liao, de Rijke, Towards Two-Stage Counterfactual Learning to Rank, ICTIR 2025, for the
      objective.
    Kiyohara et al., Credit-assigned Policy Gradient for Early Stage Retrieval in Two-stage Ranking,
      arXiv 2605.26385, 2026, for the generator's gradient.
  """

  needs_all_rows = ""
  needs_ranker = True
  trains_ranker = True
  stage = "distinct"

  def __init__(
    self,
    importance: ImportanceWeights = LTR_WEIGHTS,
    rank_weights: str = "dcg",
    examination: Sequence[float] | None = None,
    slate_size: int = 30,
    seed: int | None = None,
    **kwargs,
  ):
    """Args:
    importance: how weights are made.
    rank_weights: θ, what a reward counts at each rank: dcg, 1 / log2(1 + rank); examination, the
      probability that the slot is examined; or top_1, 1 at the first rank alone.
    examination: probability of each slot to be examined, relative to the first.
    slate_size: K, candidates of the generator.
    seed: of the candidates that are drawn around the logged item.
    """
    super().__init__(importance, **kwargs)
    if rank_weights not in RANK_WEIGHTS:
      raise InputError(
        f"two-stage LTR: rank_weights must be one of {', '.join(RANK_WEIGHTS)},"
        f" got {rank_weights!r}"
      )
    if slate_size < 1:
      raise InputError(f"two-stage LTR: slate_size must be at least 1, got {slate_size}")
    self.rank_weights = rank_weights
    self.examination = None if examination is None else [*map(float, examination)]
    self.slate_size = slate_size
    self.seed = seed
    start = tf.random.uniform([], maxval=tf.int64.max, dtype=tf.int64, seed=seed)
    self.generator = tf.random.Generator.from_seed(start)

  def evaluate(self, x: LossInputs) -> LossTerms:
    if self.rank_weights == "examination" and self.examination is None:
      raise InputError(
        "two-stage LTR: rank_weights=examination needs the examination of the slots, which this log"
        " does not have; choose dcg or top_1"
      )
    log_pi = inclusion_log_prob(x.scores, x.actions, self.slate_size, x.copies)
    log_phi = self._log_rank_weight(x)
    ratio, weights = self.importance(log_pi + log_phi, x.propensities)
    _, of_candidates = self.importance(log_phi, x.propensities)
    generator = ips(log_pi, of_candidates, x.rewards)
    return LossTerms(generator + ips(log_phi, weights, x.rewards), ratio, weights)

  def _log_rank_weight(self, x: LossInputs) -> tf.Tensor:
    """log φ(a_i), [B], of one slate around each a_i; differentiable in the ranker logits."""
    rivals = sample_rivals(x.logits, x.actions, self.slate_size, self.generator.make_seeds()[:, 0])
    slate = tf.concat([tf.cast(x.actions, tf.int32)[:, None], rivals], 1)
    scores = tf.gather(x.ranker_logits, slate, batch_dims=1)
    relative = scores[:, 1:] - scores[:, :1]
    # Where there are fewer others than rivals, the item itself is drawn, and items of no slate are.
    included = tf.gather(x.logits, rivals, batch_dims=1) > -np.inf
    included &= tf.cast(rivals, x.actions.dtype) != x.actions[:, None]
    relative = tf.where(included, relative, -np.inf)
    theta = rank_weights(self.rank_weights, self.slate_size, self.examination)
    expected = tf.maximum(expected_rank_weight(relative, theta), 1e-12)
    return tf.math.log(tf.where(is_finite(x.ranker_logits), expected, np.nan))
