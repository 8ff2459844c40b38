"""Plain NumPy, one row or slate at a time: the formulas by enumeration, nothing clever."""

import itertools
from collections.abc import Callable

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  shifted = x - x.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  return np.exp(log_softmax(x))


def value_gradient(logits: np.ndarray, rewards: np.ndarray) -> np.ndarray:
  """Gradient of the value Σ_a p(a) r(a) with respect to the logits [N] of p: p (r - value)."""
  p = softmax(logits)
  return p * (rewards - p @ rewards)


def slate_coefficients(draws, action: int, ranker_logits: np.ndarray, alpha: float) -> np.ndarray:
  """What one slate multiplies log p [N] with, Algorithm 1 of Ma et al. (2020).

  Args:
    draws: K - 1 catalogue indices.
    action: the logged item.
    ranker_logits: [N].
    alpha: weight of the other items.

  Returns:
    [N]: q at the logged item, alpha q at the other distinct items of the slate.
  """
  slate = [action, *sorted(set(draws) - {action})]
  q = softmax(ranker_logits[slate])[0]
  coefficients = np.zeros_like(ranker_logits)
  for item in slate:
    coefficients[item] = q if item == action else alpha * q
  return coefficients


def expected_slate_coefficients(
  draw_probabilities: np.ndarray,
  action: int,
  ranker_logits: np.ndarray,
  alpha: float,
  slate_size: int,
  coefficients: Callable = slate_coefficients,
) -> np.ndarray:
  """The expectation of `coefficients` over all N^(K-1) sequences of draws: [N]."""
  total = np.zeros_like(ranker_logits)
  for draws in itertools.product(range(len(ranker_logits)), repeat=slate_size - 1):
    total += np.prod(draw_probabilities[list(draws)]) * coefficients(
      draws, action, ranker_logits, alpha
    )
  return total


def log_prob_gradient(coefficients: np.ndarray, logits: np.ndarray) -> np.ndarray:
  """Gradient of Σ_a c_a log p(a) with respect to the logits [N] of p: c - p Σ_a c_a."""
  return coefficients - softmax(logits) * coefficients.sum()


def finite_differences(f: Callable, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
  """Central differences of a scalar function of an array, entry by entry."""
  gradient = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    shift = np.zeros_like(x)
    shift[index] = step
    gradient[index] = (f(x + shift) - f(x - shift)) / (2 * step)
  return gradient
