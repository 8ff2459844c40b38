"""How a reward becomes a label in [0, 1], and a logistic model's logit an expected reward.

Both use one scale: the largest reward of the training rows, at least 1 (`data.rows.Rewards.scale`).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def to_labels(rewards: Any, scale: float) -> tf.Tensor:
  """Rewards of at least 0 as shares of `scale`; a larger reward counts as `scale`."""
  return tf.minimum(rewards / scale, 1)


def from_logits(logits: Any, scale: float) -> tf.Tensor:
  """Expected rewards under a logistic model of the labels."""
  return scale * tf.sigmoid(logits)
