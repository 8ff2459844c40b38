"""The evaluator on full information [Ma20, section 5], and scorers to compare with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy
import tensorflow as tf
from scipy.special import betaln, expit, logit

from tf_twostage.data.rows import LogRows
from tf_twostage.data.streamed import TrainingRows
from tf_twostage.evaluation import ranking
from tf_twostage.evaluation.evaluator import Evaluator, Scorer
from tf_twostage.metrics import CHOICES, CUTOFFS, FULL_INFORMATION, STAGES, Scores
from tf_twostage.models.generator import RankerLogits
from tf_twostage.models.two_stage import products, rerank, retrieve

_USERS_PER_CHUNK = 1024
_PRIOR_ROWS = 0.1, 1e4  # least and most rows that the prior of popularity may be worth
# 128 MB for each array of scores, of which an evaluation holds two. The fewer users in a chunk, the
# more often the item vectors are read.
_PAIRS_PER_CHUNK = 2**25


@dataclasses.dataclass(frozen=True)
class FullInformationEvaluator(Evaluator):
  """The evaluator that uses the label of every user-item pair.

  Attributes:
    inputs: what scorers read, for all U evaluated users: {"user": {name: [U, ...]}, "context":
      {name: [U]}, "user_index": [U]}.
    relevance: [U, N] bool.
    excluded: [U, N] bool; neither recommended nor counted as relevant. None: no item is excluded.
    num_validation: the users before this one are validation users, all others test users.
  """

  inputs: Mapping[str, Any]
  relevance: np.ndarray
  excluded: np.ndarray | None
  num_validation: int
  metrics = FULL_INFORMATION

  @property
  def settings(self) -> Mapping[str, Any]:
    return {"validation_users": self.num_validation}

  def evaluation(
    self, scorer: Scorer, ranker_logits: RankerLogits, slate_size: int, stage: str = "two_stage"
  ) -> Callable[[], Scores]:
    """A function that scores `scorer` in its state at the time of the call.

    One stage: the scorer's top items. Two stages: its top `slate_size`, re-ordered by the ranker,
    whatever the policy `stage`.
    """
    inputs, relevance = dict(self.inputs), self.relevance
    if self.excluded is not None:
      inputs["excluded"] = self.excluded
      relevance = relevance & ~self.excluded
    num_relevant = relevance.sum(axis=1)
    splits = {"validation": slice(0, self.num_validation)}
    if len(relevance) > self.num_validation:
      splits["test"] = slice(self.num_validation, None)
    chunk = min(_USERS_PER_CHUNK, max(1, _PAIRS_PER_CHUNK // relevance.shape[1]))
    batches = tf.data.Dataset.from_tensor_slices(inputs).batch(chunk).cache()

    # TensorFlow warns of retracing by function object; a partial is a new one each time.
    top_items = tf.function(
      functools.partial(_top_items, scorer, ranker_logits, slate_size),
      input_signature=[batches.element_spec],
    )

    def evaluate() -> Scores:
      chunks = [top_items(batch) for batch in batches]
      stages = {
        stage: ranking.hits_from_ids(np.concatenate(ids), relevance)
        for stage, ids in zip(STAGES, zip(*chunks, strict=True), strict=True)
      }
      return {
        split: {
          stage: ranking.summarise(hits[rows], num_relevant[rows], CUTOFFS)
          for stage, hits in stages.items()
        }
        for split, rows in splits.items()
      }

    return evaluate


class ChoicesEvaluator(FullInformationEvaluator):
  """The same on what users chose in held-out rows: other items may have pleased them, too."""

  metrics = CHOICES


def _top_items(
  scorer: Scorer, ranker_logits: RankerLogits, slate_size: int, batch: Mapping[str, Any]
) -> tuple[tf.Tensor, tf.Tensor]:
  """Ids of the best items in one stage and in two, [B, depth] each."""
  depth = min(max(CUTOFFS), slate_size)
  slate, _ = retrieve(scorer(batch), batch.get("excluded"), slate_size)
  reordered, _ = rerank(slate, ranker_logits(batch, tf.maximum(slate, 0)), depth)
  return slate[:, :depth], reordered


def logged_positives(log: LogRows, num_users: int, num_items: int) -> np.ndarray:
  """[U, N] bool: pairs that the log holds as positive."""
  positives = log.positives()
  mask = np.zeros((num_users, num_items), bool)
  mask[positives.user_index, positives.action] = True
  return mask


def list_scorer(scores: np.ndarray) -> Scorer:
  """The same scores [N] for everyone."""
  row = tf.constant(scores, tf.float32)[tf.newaxis]
  return lambda batch: tf.repeat(row, tf.shape(batch["user_index"])[0], axis=0)


def vector_scorer(user_vectors: np.ndarray, item_vectors: np.ndarray) -> RankerLogits:
  """Products of precomputed user vectors [U, D] and item vectors [N, D]."""
  users, vectors = tf.constant(user_vectors), tf.constant(item_vectors)

  def logits(batch: Mapping[str, Any], items: tf.Tensor | None = None) -> tf.Tensor:
    return products(tf.gather(users, batch["user_index"]), vectors, items)

  return logits


def random_scorer(num_items: int, seed: int) -> Scorer:
  """Uniformly random scores, the same at every call."""
  return lambda batch: tf.random.stateless_uniform(
    [tf.shape(batch["user_index"])[0], num_items], seed=[seed, batch["user_index"][0]]
  )


def popularity(log: TrainingRows, num_items: int) -> np.ndarray:
  """Mean label of each item, shrunk by empirical Bayes: [N]; a label is a reward / the largest.

  The mean labels of items follow the beta distribution under which the logged sums are most likely
  (beta-binomial). An item has the posterior mean, one that was never shown the prior's.
  """
  shown, earned = log.shown(num_items), log.earned(num_items) / log.rewards().scale
  kinds, counts = np.unique(np.stack([earned, shown])[:, shown > 0], axis=1, return_counts=True)

  def prior(at: np.ndarray) -> np.ndarray:
    """Both parameters of the beta distribution, of the logits of its mean and logs of its size."""
    return np.exp(at[1]) * expit([at[0], -at[0]])

  def surprise(at: np.ndarray) -> float:
    rewarded, others = prior(at)
    likelihood = betaln(kinds[0] + rewarded, kinds[1] - kinds[0] + others)
    return float(-(counts * (likelihood - betaln(rewarded, others))).sum())

  start = logit((earned.sum() + 1) / (shown.sum() + 2)), np.log(2)
  limits = [(-15, 15), (np.log(_PRIOR_ROWS[0]), np.log(_PRIOR_ROWS[1]))]
  found = scipy.optimize.minimize(surprise, start, method="L-BFGS-B", bounds=limits)
  rewarded, others = prior(found.x)
  return (earned + rewarded) / (shown + rewarded + others)
