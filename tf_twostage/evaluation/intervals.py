"""Standard errors and confidence intervals of ratios of sums, by row or by group of rows.

Every estimator of `off_policy` is a mean plus a ratio of sums, Σ offset / n + Σ numerator / Σ
denominator: a mean has denominators of one, a self-normalised mean has the weights. So one formula
and one bootstrap serve them all.

`scipy.stats.bootstrap` resamples rows, not groups of them, has no ratio of sums by group, and takes
about 20 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from tf_twostage.errors import InputError

# The bootstrap resamples at most this many units. A longer log is first divided at random into this
# many blocks of nearly equal size, and sums of blocks are resampled. In expectation they have the
# variance and skewness of resampled rows; the noise, sqrt(2 / 10,000) = 1.4% of the variance, is
# negligible. A million rows then take the time and memory of 10,000, and the bounds change no more
# than with another seed.
MAX_UNITS = 10_000
_LARGEST_SHARE = 0.99  # of the lower bound; below 1, so that a zero does not lose everything
_DRAWS_PER_CHUNK = 2**21  # 16 MB of indices, whatever the number of rows


class RatioSummary(NamedTuple):
  """A ratio of sums with its error and intervals, as in `off_policy.Estimate`.

  NaN where the denominators sum to zero, for the error of a single unit, and for the bounds of the
  bootstrap without resamples.

  Attributes:
    influence: what each unit adds to value - E[value], or each of at most MAX_UNITS blocks of
      units. Ratios over the same rows and with the same seed have the same blocks, so differences
      of influences are those of the difference of two values.
  """

  value: float
  standard_error: float
  interval: tuple[float, float]
  bootstrap_interval: tuple[float, float]
  num_units: int
  influence: np.ndarray


def summarise_ratios(
  numerators: np.ndarray,
  denominators: np.ndarray,
  offsets: np.ndarray | None = None,
  *,
  sizes: Sequence[int] | np.ndarray | None = None,
  groups: np.ndarray | None = None,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[RatioSummary]:
  """Value, standard error and intervals of E ratios over the same n rows, or of sums of them.

  With v = o + q, o = Σ off / n, q = Σ num / Σ den, a unit g of n_g rows has the influence
  u_g = Σ_{i in g} (off_i - o) / n + Σ_{i in g} (num_i - q den_i) / Σ den, and
  SE² = G / (G - 1) Σ_g u_g²: for den = 1 and units of one row, the textbook standard error of a
  mean; for a ratio, the delta method; for groups, the cluster-robust one. All ratios see the same
  resamples, so their intervals can be compared.

  Args:
    numerators, denominators: [E, n].
    offsets: [E, n]; None: zero.
    sizes: how many ratios, one after the other, add up to each estimate; None: one.
    groups: [n] int codes 0..G-1 of the independent units; None: each row is one.
    confidence: coverage of the intervals, in (0, 1).
    num_resamples: bootstrap resamples; 0 leaves the bootstrap out.
    seed: of the resamples.

  References:
    Efron. Better bootstrap confidence intervals. JASA 82 (1987): BCa.
    Owen. Monte Carlo theory, methods and examples (2013), section 9.2: the delta method.
  """
  if not 0 < confidence < 1:
    raise InputError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is customary")
  if num_resamples < 0:
    raise InputError(f"num_resamples must be at least 0, got {num_resamples}")
  if offsets is None:
    offsets = np.zeros_like(numerators, np.float64)
  count = np.ones((1, numerators.shape[1]))
  columns = unit_sums(np.concatenate([numerators, denominators, offsets, count]), groups)
  num_units = columns.shape[1]
  sizes = np.ones(len(numerators), int) if sizes is None else np.asarray(sizes)
  first = (np.cumsum(sizes) - sizes).tolist()
  replicates = np.full((len(first), 1), np.nan)
  with np.errstate(divide="ignore", invalid="ignore"):
    values = np.add.reduceat(_ratios(columns.sum(axis=1)), first)
    influences = np.add.reduceat(_influences(columns), first)
    if num_resamples and num_units > 1:
      resampled = _resampled_sums(_in_blocks(columns, seed), num_resamples, seed)
      replicates = np.add.reduceat(_ratios(resampled), first)
  summaries = []
  in_blocks = _in_blocks(influences, seed)
  for value, replicate, influence, blocks in zip(
    values, replicates, influences, in_blocks, strict=True
  ):
    error = standard_error(influence)
    interval = t_interval(value, error, num_units, confidence)
    bootstrap = _bca(value, replicate, influence, confidence)
    summaries.append(RatioSummary(float(value), error, interval, bootstrap, num_units, blocks))
  return summaries


def unit_sums(columns: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
  """Sums of each row of `columns` [E, n] over equal `codes` [n]; None: the columns themselves."""
  if codes is None:
    return columns
  return np.stack([np.bincount(codes, weights=column) for column in columns])


def standard_error(influence: np.ndarray, num_units: int | None = None) -> float:
  """sqrt(G / (G - 1) Σ u²) of the influences u of G units, or of sums of them over blocks."""
  num_units = num_units or len(influence)
  scale = np.abs(influence).max()  # so that squares of huge weights do not overflow
  if not scale > 0:
    return float(scale) if num_units > 1 else np.nan
  with np.errstate(divide="ignore", invalid="ignore"):
    return float(scale * np.sqrt(((influence / scale) ** 2).sum() * num_units / (num_units - 1.0)))


def t_interval(
  value: float, error: float, num_units: int, confidence: float
) -> tuple[float, float]:
  """value ± error times the quantile of Student's t with one degree of freedom less than units."""
  reach = special.stdtrit(max(num_units - 1, 1), (1 + confidence) / 2) * error
  return (float(value - reach), float(value + reach))


def lower_bound(values: np.ndarray, confidence: float = 0.95) -> float:
  """A lower confidence bound of the mean of independent values >= 0, for every number of them.

  It assumes no largest value, no variance and no common distribution. For a mean m and a share
  f in (0, 1], E Π_g (1 - f + f y_g / m) <= 1 if the expectations of the y_g have the mean m (the
  geometric mean of 1 - f + f E[y_g] / m is at most the arithmetic one). So has an average over a
  grid of f, fixed by G alone; by Markov's inequality it exceeds 1 / (1 - confidence) with a
  probability of at most 1 - confidence. The bound is the largest m at which it does. With
  λ = f / (m (1 - f)), the factors are (1 + λ y_g) / (1 + λ m), which logarithmic smoothing bounds
  by (1 + λ y_g) exp(-λ m).

  Args:
    values: [G].
    confidence: with which the mean is at least the bound.

  References:
    Waudby-Smith, Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024;
    Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro, Anytime-valid off-policy inference for
      contextual bandits, ACM/IMS J. Data Sci. 1, 2024;
    Sakhi, Aouali, Alquier, Chopin, Logarithmic Smoothing for Pessimistic Off-Policy Evaluation,
      Selection and Learning, NeurIPS 2024.
  """
  scale = min(MAX_UNITS / len(values), 1.0)
  (values,) = _in_blocks(values[np.newaxis], 0)  # sums of independent values are independent
  num_units, mean = len(values), values.mean()
  positive = values[values > 0]
  if not len(positive) or not np.isfinite(mean):
    return 0.0 if np.isfinite(mean) else np.nan
  # The best share is about sqrt(6 / (G (1 + Var[y] / E[y]²))): most weight is near the middle.
  steps = np.arange(np.ceil(2 * np.log10(num_units)) + 1)
  shares = np.minimum(10 ** (-steps / 2), _LARGEST_SHARE)
  log_prior = -2 * np.log1p(np.abs(steps - steps.mean()))
  log_prior -= special.logsumexp(log_prior)
  log_prior += (num_units - len(positive)) * np.log1p(-shares)
  goal = -np.log1p(-confidence)

  def excess(log_ratio: float) -> float:
    """How far the log of the capital at m = mean exp(log_ratio) is above the goal."""
    gains = shares[:, np.newaxis] * (positive / (mean * np.exp(log_ratio)) - 1)
    return float(special.logsumexp(np.log1p(gains).sum(axis=1) + log_prior) - goal)

  low = -1.0
  while excess(low) < 0:
    low *= 2
  return float(scale * mean * np.exp(optimize.brentq(excess, low, 0.0, xtol=1e-6)))


def _ratios(sums: np.ndarray) -> np.ndarray:
  """Values of E ratios from sums of numerators, denominators, offsets and ones: [3 E + 1, ...]."""
  tops, bottoms, offsets = np.split(sums[:-1], 3)
  return offsets / sums[-1] + tops / bottoms


def _influences(columns: np.ndarray) -> np.ndarray:
  """What each unit adds to the deviation of each ratio from its mean, [E, G]; sums to zero."""
  tops, bottoms, offsets = np.split(columns[:-1], 3)
  total, count = bottoms.sum(axis=1, keepdims=True), columns[-1].sum()
  ratio, mean = tops.sum(axis=1, keepdims=True) / total, offsets.sum(axis=1, keepdims=True) / count
  return (tops - ratio * bottoms) / total + (offsets - mean * columns[-1]) / count


def _in_blocks(columns: np.ndarray, seed: int) -> np.ndarray:
  """Sums of columns [E, G] over at most MAX_UNITS random blocks; the same blocks for one seed."""
  num_units = columns.shape[1]
  if num_units <= MAX_UNITS:
    return columns
  blocks = np.random.default_rng([seed, 1]).permutation(num_units) % MAX_UNITS
  return unit_sums(columns, blocks)


def _resampled_sums(columns: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
  """Sums [E, R] of columns [E, m] in R resamples of the m units."""
  rng = np.random.default_rng(seed)
  num_units = columns.shape[1]
  chunk = max(1, _DRAWS_PER_CHUNK // num_units)
  sums = []
  for start in range(0, num_resamples, chunk):
    size = min(chunk, num_resamples - start)
    draws = rng.integers(num_units, size=(size, num_units))
    # How often each unit was drawn, once for all ratios. Counting drawn indices is faster than
    # drawing multinomial or Poisson counts.
    draws += num_units * np.arange(size)[:, np.newaxis]
    counts = np.bincount(draws.ravel(), minlength=size * num_units).reshape(size, num_units)
    # Not a BLAS product: with so few columns its threads gain little, and on a busy machine they
    # wait for each other.
    sums.append(np.einsum("km,rm->kr", columns, counts.astype(np.float64)))
  return np.concatenate(sums, axis=1)


def _bca(
  value: float, replicates: np.ndarray, influence: np.ndarray, confidence: float
) -> tuple[float, float]:
  """Bias-corrected and accelerated bounds from replicates [R] and influences [G] of any scale.

  Weights and rare rewards skew an estimate, most often to the right. Plain percentiles, and even
  more the symmetric interval, then miss too often a truth above them.
  """
  # Resamples without any weight have no ratio and are left out.
  replicates = replicates[np.isfinite(replicates)]
  scale = np.abs(influence).max()
  residuals = influence / (scale if scale > 0 else 1.0)
  spread = (residuals**2).sum()
  if not np.isfinite(value) or not len(replicates):
    return (np.nan, np.nan)
  if spread == 0:
    return (float(value), float(value))
  below = (replicates < value).mean() + (replicates == value).mean() / 2
  edge = 1 / (len(replicates) + 1)
  bias = special.ndtri(np.clip(below, edge, 1 - edge))
  acceleration = (residuals**3).sum() / (6 * spread**1.5)
  z = bias + special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
  levels = special.ndtr(bias + z / np.maximum(1 - acceleration * z, 1e-3))
  low, high = np.quantile(replicates, levels)
  return (float(low), float(high))
