"""Batches and gradients that the tests of the losses share."""

import numpy as np

import tf_twostage  # noqa: F401  (selects Keras 2)

import tensorflow as tf  # isort: skip


def batch(rows: int = 6, items: int = 5, seed: int = 0, dtype=np.float64) -> dict[str, np.ndarray]:
  """Random arguments of a loss; rewards of both kinds, propensities of a proper size."""
  rng = np.random.default_rng(seed)
  return {
    "logits": rng.normal(size=(rows, items)).astype(dtype),
    "actions": rng.integers(items, size=rows),
    "propensities": rng.uniform(0.1, 0.9, size=rows).astype(dtype),
    "rewards": (np.arange(rows) % 2 == 0).astype(dtype),
    "ranker_logits": rng.normal(size=(rows, items)).astype(dtype),
  }


def value_and_gradient(
  loss, columns: dict[str, np.ndarray], wrt: str = "logits"
) -> tuple[np.ndarray, np.ndarray | None]:
  """The loss [B] and the gradient of its sum: row i's is that of L_i, rows being apart."""
  tensors = {name: tf.constant(value) for name, value in columns.items()}
  with tf.GradientTape() as tape:
    tape.watch(tensors[wrt])
    value = loss(**tensors)
  gradient = tape.gradient(value, tensors[wrt])
  return value.numpy(), None if gradient is None else gradient.numpy()
