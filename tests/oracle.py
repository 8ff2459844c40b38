"""Plain NumPy, one row or slate at a time: the formulas by enumeration, nothing clever."""

import itertools
import math
from collections.abc import Callable

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  shifted = x - x.max(axis=-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  return np.exp(log_softmax(x))


def times(weights: np.ndarray, logs: np.ndarray) -> np.ndarray:
  """weights * logs, with 0 * -inf = 0."""
  weights, logs = np.broadcast_arrays(weights, logs)
  return weights * np.where(weights == 0, 0.0, logs)


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


def multiset_coefficients(
  draws, action: int, ranker_logits: np.ndarray, alpha: float
) -> np.ndarray:
  """As `slate_coefficients` of a slate that keeps its repeats: they compete, and count, each."""
  q = softmax(ranker_logits[[action, *draws]])[0]
  coefficients = alpha * q * np.bincount(draws, minlength=len(ranker_logits))
  coefficients[action] += q
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


def jacobian(f: Callable, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
  """Central differences of a vector function of a vector: [outputs, inputs]."""
  shifts = step * np.eye(len(x))
  return np.stack([(f(x + shift) - f(x - shift)) / (2 * step) for shift in shifts], axis=1)


def importance_weights(
  ratio: np.ndarray,
  *,
  cap: float = 10.0,
  floor: float = 0.01,
  self_normalize: bool = True,
  method: str = "clip",
  shrinkage: float = 100.0,
) -> np.ndarray:
  """Weights [B] from π(a_i) / β_i [B]: corrected, then divided by their mean."""
  if method == "clip":
    weights = np.where(ratio == 0, 0.0, np.clip(ratio, floor, cap))
  elif method == "shrink":
    weights = shrinkage * ratio / (ratio**2 + shrinkage)
  else:
    weights = np.ones_like(ratio)
  return weights / (weights.mean() or 1.0) if self_normalize else weights


def poem(weights: np.ndarray, rewards: np.ndarray, penalty: float) -> np.ndarray:
  """-ω_i r_i + λ sqrt(Var / n), Var the sample variance of ω_i r_i: [B]."""
  gains = weights * rewards
  return -gains + penalty * np.sqrt(np.var(gains, ddof=1) / len(gains))


def normalised_poem(weights: np.ndarray, rewards: np.ndarray, penalty: float) -> np.ndarray:
  """`poem` of a ratio: the standard error is that of its linearisation, ω_i (r_i - Σωr / Σω)."""
  weights = weights / (weights.mean() or 1.0)
  residuals = weights * (rewards - np.mean(weights * rewards))
  n = len(rewards)
  error = np.sqrt(np.sum(residuals**2) / (n * (n - 1)))
  return -weights * rewards + penalty * error


def inclusion(logits: np.ndarray, slate_size: int) -> np.ndarray:
  """1 - exp(-t exp(z)) of every item [N], which sum to K: t by bisection."""
  rates = np.exp(logits - logits.max())
  if slate_size >= np.count_nonzero(rates):
    return (rates > 0).astype(float)
  low, high = -50.0, 700.0
  for _ in range(100):
    middle = (low + high) / 2
    if -np.expm1(-np.exp(middle) * rates).sum() < slate_size:
      low = middle
    else:
      high = middle
  return -np.expm1(-np.exp(low) * rates)


def plackett_luce(logits: np.ndarray, length: int) -> dict[tuple[int, ...], float]:
  """The probability of every sequence of the first `length` items of a Plackett-Luce ranking."""
  rates = np.exp(logits - logits.max())
  found = {}
  for sequence in itertools.permutations(range(len(rates)), length):
    left = rates.sum() - np.cumsum([0, *rates[list(sequence[:-1])]])
    found[sequence] = float(np.prod(rates[list(sequence)] / left))
  return found


def log_sequence(logits: np.ndarray, sequence: np.ndarray) -> float:
  """log of the probability that a Plackett-Luce ranking begins with these items in this order."""
  left = [np.delete(logits, sequence[:place]) for place in range(len(sequence))]
  return sum(logits[item] - np.logaddexp.reduce(z) for item, z in zip(sequence, left, strict=True))


def rank_weight(ranker_logits: np.ndarray, theta: np.ndarray) -> float:
  """E[θ(rank of the first item)] of a slate that is ranked by Plackett-Luce."""
  rankings = plackett_luce(ranker_logits, len(ranker_logits))
  return sum(probability * theta[ranking.index(0)] for ranking, probability in rankings.items())


def top_k_multiplier(p: np.ndarray, k: int) -> np.ndarray:
  """Derivative of 1 - (1 - p)^k, the chance of an item of probability p to be among k draws."""
  return k * (1 - p) ** (k - 1)


def distinct_slate_policy(
  logits: np.ndarray, ranker_logits: np.ndarray, slate_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """K draws with replacement, then the ranker's softmax over the *distinct* items among them.

  Returns:
    [N] the probability that an item is shown, and [N, N] its derivatives in the logits: as
    `policy_oracle.enumerate_slates`, but that repeats compete only once.
  """
  p = softmax(logits)
  items = len(p)
  probabilities, derivatives = np.zeros(items), np.zeros((items, items))
  for drawn in itertools.product(range(items), repeat=slate_size):
    probability = np.prod(p[list(drawn)])
    score = np.bincount(drawn, minlength=items) - slate_size * p
    slate = sorted(set(drawn))
    shown = softmax(ranker_logits[slate])
    probabilities[slate] += probability * shown
    derivatives[slate] += probability * shown[:, None] * score
  return probabilities, derivatives


def distinct_slate_probabilities(
  p: np.ndarray, ranker_logits: np.ndarray, slate_size: int, step: float = 0.25
) -> np.ndarray:
  """`distinct_slate_policy` of a catalogue too large to enumerate: [N].

  The first of the exponential clocks of rate exp(g) that rings is shown; clock b is silent until
  time t with probability f_b = exp(-t exp(g_b)). Over K draws, of which item b gets n_b,
    E[Π_b f_b^(1 if n_b > 0)] = K! [z^K] Π_b (1 + f_b (exp(p_b z) - 1)),
  where exp(p_b z) generates 1 / n_b!. The coefficient is a mean over a circle of radius K, the
  time integral a trapezoidal rule in log t; both err by less than 1e-9.
  """
  size, angles = slate_size, 4 * slate_size + 40
  z = size * np.exp(2j * np.pi * np.arange(angles) / angles)
  coefficient = math.factorial(size) / angles / z**size
  draws = np.expm1(p[:, None] * z)  # [N, angles]
  y = np.arange(-ranker_logits.max() - np.log(size) - 25.0, 5.0 - ranker_logits.min(), step)
  shown = np.zeros_like(p)
  for time in np.exp(y):
    rate = time * np.exp(ranker_logits)
    silent = np.exp(-rate)
    factors = 1 + silent[:, None] * draws
    others = np.exp(np.log(factors).sum(axis=0)) * coefficient
    shown += step * rate * silent * np.real((draws / factors) @ others)
  return shown
