"""The two stages: score, retrieve, then rerank. Item ids stay with their scores.

Evaluation and the exported model share these functions.
"""

from __future__ import annotations

import tensorflow as tf

from tf_twostage.distinct import DistinctPolicy
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.top_k import top_k

PADDING = -1
# The policy of both stages, by the name of the stage; see `metrics.TWO_STAGES`.
POLICIES: dict[str, type[TwoStagePolicy] | type[DistinctPolicy]] = {
  "two_stage": TwoStagePolicy,
  "distinct": DistinctPolicy,
}


def products(users: tf.Tensor, vectors: tf.Tensor, items: tf.Tensor | None = None) -> tf.Tensor:
  """Scores of user vectors [B, D] with item vectors [N, D].

  Args:
    items: which to score: None, all; [S], the same for every user; or [B, S], each user's own.

  Returns:
    [B, N], or [B, S].
  """
  chosen = vectors if items is None else tf.gather(vectors, items)
  if chosen.shape.rank == 3:
    return tf.linalg.matvec(chosen, users)
  return tf.matmul(users, chosen, transpose_b=True)


def retrieve(
  logits: tf.Tensor, excluded: tf.Tensor | None, k: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k items with the highest generator scores [B, N], without the excluded ones [B, N].

  Returns:
    ids [B, k] int32, best first, and their scores [B, k]. If fewer than k items remain, the rest
    have id -1 and score -inf.
  """
  if excluded is not None:
    logits = tf.where(excluded, tf.constant(float("-inf"), logits.dtype), logits)
  scores, ids = top_k(logits, k)
  return tf.where(scores > scores.dtype.min, ids, PADDING), scores


def rerank(
  ids: tf.Tensor, ranker_scores: tf.Tensor, k: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k best items of slates [B, K] from `retrieve`, by their ranker scores [B, K].

  Returns:
    ids [B, k] and their ranker scores [B, k], best first; padding last, as in `retrieve`.
  """
  valid = ids != PADDING
  masked = tf.where(valid, ranker_scores, tf.constant(float("-inf"), ranker_scores.dtype))
  scores, order = tf.math.top_k(masked, k)
  return tf.gather(ids, order, batch_dims=1), scores
