"""Plain NumPy, float64: the two-stage policy of one row by enumeration and by brute quadrature."""

import itertools
from typing import NamedTuple

import numpy as np

from tests.oracle import inclusion, softmax


class Enumeration(NamedTuple):
  """All N^K slates of a tiny catalogue.

  Attributes:
    probabilities: [N] π(a), the probability that a is shown.
    jacobian: [N, N] ∂π(a) / ∂logits(b).
  """

  probabilities: np.ndarray
  jacobian: np.ndarray


def enumerate_slates(logits: np.ndarray, ranker_logits: np.ndarray, slate_size: int) -> Enumeration:
  """Draws K items with replacement in every possible way; the ranker's softmax shows one.

  A slate's probability is Π_j p(A_j), and its logarithm's gradient Σ_j (onehot(A_j) - p).
  """
  p = softmax(logits)
  items = len(p)
  probabilities, jacobian = np.zeros(items), np.zeros((items, items))
  for slate in itertools.product(range(items), repeat=slate_size):
    drawn = list(slate)
    probability = np.prod(p[drawn])
    score = np.bincount(drawn, minlength=items) - slate_size * p
    for item, shown in zip(drawn, softmax(ranker_logits[drawn]), strict=True):
      probabilities[item] += probability * shown
      jacobian[item] += probability * shown * score
  return Enumeration(probabilities, jacobian)


def ranker_probability(
  p: np.ndarray, ranker_logits: np.ndarray, actions: np.ndarray, slate_size: int, step: float = 0.1
) -> np.ndarray:
  """qbar(a) = ∫ e^v exp(-e^v) φ(e^y)^(K-1) dy, v = y + g_a: a very fine trapezoidal rule.

  Args:
    p: [N] the generator's probabilities.
    ranker_logits: [N] g.
    actions: [A] catalogue indices.
    slate_size: K.
    step: the rule errs by 2 |Γ(1 + 2πi/step)|, which is 1e-41 at 0.1.

  Returns:
    [A].
  """
  fastest, slowest = ranker_logits.max(), ranker_logits[actions].min()
  y = np.arange(-fastest - np.log(slate_size) - 25.0, 5.0 - slowest, step)
  with np.errstate(over="ignore", divide="ignore"):
    others = p @ np.exp(-np.exp(np.minimum(ranker_logits[:, None] + y, 50.0)))
    v = ranker_logits[actions][:, None] + y
    log_terms = v - np.exp(np.minimum(v, 50.0)) + (slate_size - 1) * np.log(others)
  return step * np.exp(log_terms).sum(axis=1)


def enumerate_inclusion(logits, ranker_logits, slate_size):
  """π(a), [N], over all subsets of a tiny catalogue but the empty one."""
  pi = inclusion(logits, slate_size)
  shown = np.zeros(len(pi))
  for subset in itertools.product([False, True], repeat=len(pi)):
    inside = np.array(subset)
    if inside.any():
      shown[inside] += np.where(inside, pi, 1 - pi).prod() * softmax(ranker_logits[inside])
  return shown / shown.sum()
