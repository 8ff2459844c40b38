"""Distillation of target slates: the loss of a generator that learns from a reward model."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms, OffPolicyLoss


class SafeSlate(OffPolicyLoss):
  """-(1/|T|) Σ_{a in T} log p(a) - w (1/|F|) Σ_{a in F} log p(a | not in T), for target slates.

  T are the best items of a user by a reward model, F the best others that the ranker scores below
  all of T. The ranker then shows T whichever of F are candidates, and T comes first in the
  generator's own order, too. `actions` are the slates, [B, K], T first; rewards and propensities
  are not read: the reward model has learned from them.
  """

  needs_all_rows = "it learns from a target slate of every user"
  takes_slates = True
  compiles = True

  def __init__(
    self,
    top: int = 0,
    filler_weight: float = 0.5,
    pessimism: float = 0.0,
    margin: float = 0.0,
    slate_size: int = 30,
    **kwargs,
  ):
    """Args:
    top: items in T; 0: a third of the slate.
    filler_weight: w, weight of F.
    pessimism: T and F are the best by the reward model's mean less this many posterior standard
      deviations.
    margin: how far below all of T the ranker's logits of F lie, at least. The generator learns a
      wider gap more easily.
    slate_size: K, items of T and F together.
    """
    super().__init__(**kwargs)
    if not 0 <= top < slate_size or slate_size < 2:
      raise InputError(
        f"SafeSlate: the slate holds top items and others, so slate_size ({slate_size}) must be at"
        f" least 2, and top ({top}) below it"
      )
    if filler_weight < 0 or not filler_weight < np.inf:
      raise InputError(f"SafeSlate: filler_weight must be at least 0, got {filler_weight}")
    if margin < 0 or not margin < np.inf:
      raise InputError(f"SafeSlate: margin must be at least 0, got {margin}")
    self.top = top
    self.filler_weight = filler_weight
    self.pessimism = pessimism
    self.margin = margin
    self.slate_size = slate_size

  @property
  def num_top(self) -> int:
    """How many items of a slate are in T."""
    return self.top or max(1, self.slate_size // 3)

  def evaluate(self, x: LossInputs) -> LossTerms:
    top, fillers = tf.split(x.actions, [self.num_top, -1], axis=1)
    rows = tf.repeat(tf.range(tf.shape(top, tf.int64)[0]), self.num_top)
    places = tf.stack([rows, tf.reshape(top, [-1])], axis=1)
    # Far below all others, but finite: the gradient of -inf - -inf is NaN.
    lowest = tf.fill(tf.shape(rows), x.logits.dtype.min / 2)
    others = tf.tensor_scatter_nd_update(x.logits, places, lowest)
    loss = -_mean_log_prob(x.logits, top)
    return LossTerms(loss - self.filler_weight * _mean_log_prob(others, fillers))


def _mean_log_prob(logits: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
  """Mean log softmax of items [B, n], [B]."""
  chosen = tf.reduce_mean(tf.gather(logits, items, batch_dims=1), axis=1)
  return chosen - tf.reduce_logsumexp(logits, axis=1)
