"""Standard errors and confidence intervals of ratios of sums, by row or by group of rows.

Every estimator of `off_policy` is Σ_i numerator_i / Σ_i denominator_i: a mean has denominators of
one, a self-normalised mean has the weights. So one formula and one bootstrap serve them all.

`scipy.stats.bootstrap` resamples rows, not groups of them, has no ratio of sums by group, and takes
about 20 times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from tf_twostage.errors import InputError

# The bootstrap resamples at most this many units. A longer log is first divided at random into this
# many blocks of nearly equal size, and sums of blocks are resampled. In expectation they have the
# variance and skewness of resampled rows; the noise, sqrt(2 / 10,000) = 1.4% of the variance, is
# negligible. A million rows then take the time and memory of 10,000, and the bounds change no more
# than with another seed.
MAX_UNITS = 10_000
_DRAWS_PER_CHUNK = 2**21  # 16 MB of indices, whatever the number of rows


class RatioSummary(NamedTuple):
  """A ratio of sums with its error and intervals, as in `off_policy.Estimate`.

  NaN where the denominators sum to zero, for the error of a single unit, and for the bounds of the
  bootstrap without resamples.
  """

  value: float
  standard_error: float
  interval: tuple[float, float]
  bootstrap_interval: tuple[float, float]
  num_units: int


def summarise_ratios(
  numerators: np.ndarray,
  denominators: np.ndarray,
  *,
  groups: np.ndarray | None = None,
  confidence: float = 0.95,
  num_resamples: int = 1000,
  seed: int = 0,
) -> list[RatioSummary]:
  """Value, standard error and intervals of E ratios over the same n rows.

  With v = Σ num / Σ den and u_g = Σ_{i in g} (num_i - v den_i), the sum over a unit,
  SE² = G / (G - 1) Σ_g u_g² / (Σ den)²: for den = 1 and units of one row, the textbook
  standard error of a mean; for a ratio, the delta method; for groups, the cluster-robust one.
  All ratios see the same resamples, so their intervals can be compared.

  Args:
    numerators, denominators: [E, n].
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
  if groups is not None:
    numerators, denominators = _sums(numerators, groups), _sums(denominators, groups)
  num_units = numerators.shape[1]
  totals = denominators.sum(axis=1)
  with np.errstate(divide="ignore", invalid="ignore"):
    values = numerators.sum(axis=1) / totals
    residuals = numerators - values[:, np.newaxis] * denominators
    # Divided by the largest, so that powers of huge weights do not overflow.
    scale = np.abs(residuals).max(axis=1)
    residuals /= np.where(scale > 0, scale, 1)[:, np.newaxis]
    norms = np.sqrt((residuals**2).sum(axis=1) * num_units / (num_units - 1.0))
    errors = scale / np.abs(totals) * norms
  reach = special.stdtrit(max(num_units - 1, 1), (1 + confidence) / 2) * errors
  if num_resamples and num_units > 1:
    replicates = _resampled_ratios(numerators, denominators, num_resamples, seed)
  else:
    replicates = np.full((len(values), 1), np.nan)
  return [
    RatioSummary(
      float(value),
      float(error),
      (float(value - half), float(value + half)),
      _bca(value, replicate, residual, confidence),
      num_units,
    )
    for value, error, half, replicate, residual in zip(
      values, errors, reach, replicates, residuals, strict=True
    )
  ]


def _sums(columns: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """Sums of each row of `columns` [E, n] over equal `codes` [n]."""
  return np.stack([np.bincount(codes, weights=column) for column in columns])


def _resampled_ratios(
  numerators: np.ndarray, denominators: np.ndarray, num_resamples: int, seed: int
) -> np.ndarray:
  """Ratios [E, R] in R resamples of the units [E, m]; NaN where the denominators sum to zero."""
  rng = np.random.default_rng(seed)
  columns = np.concatenate([numerators, denominators])
  if columns.shape[1] > MAX_UNITS:
    columns = _sums(columns, rng.permutation(columns.shape[1]) % MAX_UNITS)
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
  top, bottom = np.split(np.concatenate(sums, axis=1), 2)
  with np.errstate(divide="ignore", invalid="ignore"):
    return top / bottom


def _bca(
  value: float, replicates: np.ndarray, residuals: np.ndarray, confidence: float
) -> tuple[float, float]:
  """Bias-corrected and accelerated bounds from replicates [R] and residuals [m] of any scale.

  Weights and rare rewards skew an estimate, most often to the right. Plain percentiles, and even
  more the symmetric interval, then miss too often a truth above them.
  """
  # Resamples without any weight have no ratio and are left out.
  replicates = replicates[np.isfinite(replicates)]
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
