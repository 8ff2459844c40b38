"""Probit matrix factorisation with side information, sampled by Gibbs: rewards with uncertainty."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import tensorflow as tf
from scipy.special import gammaincc, gammainccinv, log_ndtr, ndtr

from tf_twostage.data.rows import LogRows
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.side_information import feature_matrix
from tf_twostage.training.progress import progress_bar

_log = logging.getLogger(__name__)

_PAIRS_PER_CHUNK = 2**20  # 4 MB for each array of scores
_MAX_RHAT = 1.1
_PAIRS_OF_RHAT = 500  # drawn of the users and items that have rows
_QUANTILE_OF_RHAT = 0.95
# Largest standard deviations of b, and of p and q. Without a limit they grow for ever on rewards
# that hold no noise, as simulated ones do; chosen on validation users of MovieLens-1M.
_MAX_STDDEVS = 1.0, 0.25
# Of the users' mean b and p, in units of their own precision. The mean of p is held at 0: with it
# q would be another bias of items, without a limit.
_INTERCEPT_PRECISIONS = 0.01, 1e9
_SHRINKAGE_RATE = 0.05  # of the gamma prior of shape 1 of the coefficients' precision


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
  """Draws of P(r = 1 | u, i) = Φ(b_u + b_i + p_u · q_i).

  Attributes:
    users: [S, U, 1 + D] float32, b_u and p_u of each draw.
    items: [S, N, 1 + D] float32, b_i and q_i.
    rhat: the convergence diagnostic R-hat, 1 at convergence: of the "predictions", the 95th
      percentile over pairs of users and items, and of the "log likelihood". That of factors would
      mean nothing, since their sign and order are arbitrary.
  """

  users: np.ndarray
  items: np.ndarray
  rhat: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def moments(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over draws of P(r = 1): [m, N] float32, of users [m], or all."""
    rows = np.arange(self.users.shape[1]) if rows is None else rows
    mean = np.empty((len(rows), self.items.shape[1]), np.float32)
    deviation = np.empty_like(mean)
    items = tf.constant(self.items)
    size = max(1, _PAIRS_PER_CHUNK // mean.shape[1])
    for start in range(0, len(rows), size):
      part = slice(start, start + size)
      mean[part], deviation[part] = _moments(tf.constant(self.users[:, rows[part]]), items)
    return mean, deviation

  def pair_moments(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of pairs, [m] and [m] to [m]."""
    draws = zip(self.users, self.items, strict=True)
    probabilities = np.stack([ndtr(_scores(u, i, users, items)) for u, i in draws])
    return probabilities.mean(axis=0), probabilities.std(axis=0)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a posterior is sampled.

  Attributes:
    width: D, factors of interactions.
    chains: independent runs, which R-hat compares.
    sweeps: of each chain, the first `burn_in` of which are dropped.
    draws: kept of each chain, evenly spaced.
    seed: of everything drawn.
  """

  width: int = 2
  chains: int = 2
  sweeps: int = 300
  burn_in: int = 150
  draws: int = 25
  seed: int = 0

  def inputs(self) -> dict[str, Any]:
    """What draws of a log depend on, JSON-able: these settings and the constants of the model."""
    constants = _MAX_STDDEVS, _INTERCEPT_PRECISIONS, _SHRINKAGE_RATE
    return {**dataclasses.asdict(self), "constants": constants}


def of_sweeps(sweeps: int, seed: int) -> Sampling:
  """So many sweeps of each chain, the second half of which are kept."""
  return Sampling(sweeps=sweeps, burn_in=sweeps // 2, seed=seed)


class _Side(NamedTuple):
  """Users or items during sampling: those n of all that the log has rows of.

  The others follow their prior given everything else, and would slow the chain down.

  Attributes:
    seen: [n] int, which they are.
    places: [M] int, which of the n each row of the log is of.
    of_rows: [n, M] sparse, 1 where a row of the log is of this user or item.
    everyone: features of all, seen or not; for users the first column is 1.
    features: [n, F], those of the n; orthogonal columns.
    squares: [F] squared norms of the columns.
    fixed: [F, 2] prior precisions of the coefficients, of b and of p; NaN: one of all is learned.
  """

  seen: np.ndarray
  places: np.ndarray
  of_rows: scipy.sparse.csr_array
  everyone: np.ndarray
  features: np.ndarray
  squares: np.ndarray
  fixed: np.ndarray

  @classmethod
  def of(cls, index: np.ndarray, features: np.ndarray, *, intercept: bool) -> _Side:
    seen, places = np.unique(index, return_inverse=True)
    count, rows = len(seen), len(index)
    entries = np.ones(rows), (places, np.arange(rows))
    of_rows = scipy.sparse.csr_array(entries, shape=(count, rows))
    # A rotation of the features leaves the model as it is, since the prior of their coefficients is
    # isotropic, and makes the coefficients independent.
    centred = features - features[seen].mean(axis=0)
    squares, directions = np.linalg.eigh(centred[seen].T @ centred[seen])
    kept = squares > 1e-9 * count
    columns, fixed = centred @ directions[:, kept], np.full((kept.sum(), 2), np.nan)
    if intercept:
      columns = np.hstack([np.ones((len(features), 1)), columns])
      fixed = np.vstack([_INTERCEPT_PRECISIONS, fixed])
    squares = (columns[seen] ** 2).sum(axis=0)
    return cls(seen, places, of_rows, columns, columns[seen], squares, fixed)

  def draw_all(self, rng: np.random.Generator, state: _State) -> np.ndarray:
    """Factors of all, seen or not, [., 1 + D] float32."""
    mean = self.everyone @ state.coefficients
    drawn = mean + rng.normal(size=mean.shape) / np.sqrt(state.precisions)
    drawn[self.seen] = state.factors
    return drawn.astype(np.float32)


class _State(NamedTuple):
  """Factors of one side [n, 1 + D], and the prior that they share.

  A factor is N(x B, 1 / τ) with the features x, and a coefficient N(0, 1 / (λ τ)).
  """

  factors: np.ndarray
  coefficients: np.ndarray
  precisions: np.ndarray  # [1 + D], τ; one value for p, or q
  shrinkage: float  # λ


def sample(
  users: np.ndarray,
  items: np.ndarray,
  labels: np.ndarray,
  user_features: np.ndarray,
  item_features: np.ndarray,
  sampling: Sampling,
) -> Posterior:
  """Draws from the posterior of a probit factorisation, by Gibbs sampling.

  Factors of users and items are normal with means that are linear in their features; those of
  items have mean zero, as the users' absorb it. Users and items without rows are drawn from their
  prior. A label between 0 and 1 is the probability of a reward, which every sweep draws anew.

  Users', then items' factors are proposed from a quadratic fit of their conditional density. Gibbs
  sampling of y (Albert, Chib 1993) is slow where nearly all rewards of an item are the same.

  Args:
    users, items: [M] int, user and item of each row.
    labels: [M] in [0, 1].
    user_features: [U, F]. item_features: [N, F].

  References:
    Gamerman, Sampling from the Posterior Distribution in Generalized Linear Mixed Models,
      Statistics and Computing 7, 1997: the proposals.
    Johndrow et al., MCMC for Imbalanced Categorical Data, JASA 114, 2019: why not Gibbs.
    Salakhutdinov, Mnih, Bayesian Probabilistic Matrix Factorization using MCMC, ICML 2008.
    Simm et al., Macau: Scalable Bayesian Factorization with High-dimensional Side Information
      using MCMC, MLSP 2017: the linear means.
    Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, section 11.4: R-hat of split chains.
  """
  sides = (
    _Side.of(users, np.asarray(user_features, np.float64), intercept=True),
    _Side.of(items, np.asarray(item_features, np.float64), intercept=False),
  )
  kept: list[list[np.ndarray]] = []
  first, last = sampling.burn_in, sampling.sweeps - 1
  when = set(np.linspace(first, last, sampling.draws).round().astype(int).tolist())
  rng = np.random.default_rng([sampling.seed, sampling.chains])
  pairs = [rng.integers(len(side.seen), size=_PAIRS_OF_RHAT) for side in sides]
  traces = np.empty((sampling.chains, sampling.sweeps - first, 1 + _PAIRS_OF_RHAT))
  with progress_bar("reward model", sampling.chains * sampling.sweeps, unit="sweep") as progress:
    for chain in range(sampling.chains):
      rng = np.random.default_rng([sampling.seed, chain])
      user, item = (_start(rng, side, sampling.width) for side in sides)
      for sweep in range(sampling.sweeps):
        sign = np.where(rng.random(len(labels)) < labels, 1.0, -1.0)
        user = _update(rng, sides[0], user, item.factors[sides[1].places], sign)
        item = _update(rng, sides[1], item, user.factors[sides[0].places], sign)
        if sweep >= first:
          z = _scores(user.factors, item.factors, sides[0].places, sides[1].places)
          probabilities = ndtr(_scores(user.factors, item.factors, *pairs))
          traces[chain, sweep - first] = log_ndtr(sign * z).mean(), *probabilities
        if sweep in when:
          kept.append(
            [side.draw_all(rng, of) for side, of in zip(sides, (user, item), strict=True)]
          )
        progress.update()
  likelihood, *of_pairs = _split_rhat(traces)
  rhat = float(np.quantile(of_pairs, _QUANTILE_OF_RHAT))
  if not rhat <= _MAX_RHAT:
    _log.warning(
      "reward model: R-hat of predictions, the 95th percentile of pairs, is %.2f, above %.1f: the"
      " chains have not converged, and uncertainty is understated; raise reward_sweeps",
      rhat,
      _MAX_RHAT,
    )
  of_users, of_items = (np.stack(of_side) for of_side in zip(*kept, strict=True))
  return Posterior(of_users, of_items, {"predictions": rhat, "log likelihood": float(likelihood)})


def of_log(log: LogRows, tables: EncodedTables, sampling: Sampling, scale: float) -> Posterior:
  """The posterior of the rewards of a log; a label is a reward's share of `scale`.

  How often the log shows an item is one of its features. A policy shows an item to users who are
  likely to reward it, so that the rewards of an item that is rarely shown promise too much.
  """
  labels = np.minimum(log.reward / scale, 1)
  users = feature_matrix(tables.schema.user, tables.users)
  items = feature_matrix(tables.schema.item, tables.items)
  shown = np.log1p(log.shown(len(items)))
  items = np.column_stack([items, (shown - shown.mean()) / (shown.std() or 1.0)])
  return sample(log.user_index, log.action, labels, users, items, sampling)


def _scores(p: np.ndarray, q: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
  u, i = p[users], q[items]
  return u[:, 0] + i[:, 0] + np.einsum("md,md->m", u[:, 1:], i[:, 1:])


def _start(rng: np.random.Generator, side: _Side, width: int) -> _State:
  precisions = 1 / np.square(np.repeat(_MAX_STDDEVS, [1, width]))
  factors = 0.3 * rng.normal(size=(len(side.features), 1 + width))
  return _State(factors, np.zeros((side.features.shape[1], 1 + width)), precisions, 10.0)


class _Fit(NamedTuple):
  """The quadratic fit of a log density at one point, for each of n users or items.

  Attributes:
    value: [n], the log density there.
    mean: [n, 1 + D], the maximum of the quadratic.
    root: [n, 1 + D, 1 + D], Cholesky root of its negative second derivative.
  """

  value: np.ndarray
  mean: np.ndarray
  root: np.ndarray

  def log_density(self, scaled: np.ndarray) -> np.ndarray:
    """That of the normal distribution of this fit, at mean + root⁻ᵀ scaled, up to a constant."""
    determinant = np.log(np.einsum("nkk->nk", self.root)).sum(axis=1)
    return determinant - (scaled**2).sum(axis=1) / 2


def _update(
  rng: np.random.Generator, side: _Side, state: _State, of_row: np.ndarray, sign: np.ndarray
) -> _State:
  """Draws the factors of one side given the other's, then their prior."""
  return _prior(rng, side, _moved(rng, side, state, of_row, sign), state)


def _moved(
  rng: np.random.Generator, side: _Side, state: _State, of_row: np.ndarray, sign: np.ndarray
) -> np.ndarray:
  """Factors of one side [n, 1 + D], after a step of Metropolis and Hastings for each of the n.

  Args:
    of_row: [M, 1 + D], factors of the other side in each row of the log.
    sign: [M], 1 for a reward and -1 for none.
  """
  design = np.concatenate([np.ones((len(sign), 1)), of_row[:, 1:]], axis=1)
  width = design.shape[1]
  products = np.einsum("mi,mj->mij", design, design).reshape(len(sign), -1)
  prior = side.features @ state.coefficients

  def fit(factors: np.ndarray) -> _Fit:
    z = of_row[:, 0] + (design * factors[side.places]).sum(axis=1)
    log_prob = log_ndtr(sign * z)
    slope = sign * np.exp(-(z**2) / 2 - log_prob) / np.sqrt(2 * np.pi)
    curvature = slope * (slope + z)
    residual = factors - prior
    sums = side.of_rows @ np.column_stack(
      [log_prob, design * slope[:, np.newaxis], products * curvature[:, np.newaxis]]
    )
    value = sums[:, 0] - (state.precisions * residual**2).sum(axis=1) / 2
    gradient = sums[:, 1 : 1 + width] - state.precisions * residual
    precision = sums[:, 1 + width :].reshape(-1, width, width) + np.diag(state.precisions)
    root = np.linalg.cholesky(precision)
    return _Fit(value, factors + _solve_upper(root, _solve_lower(root, gradient)), root)

  factors = state.factors
  noise = rng.normal(size=factors.shape)
  here = fit(factors)
  proposal = here.mean + _solve_upper(here.root, noise)
  there = fit(proposal)
  back = np.einsum("nkj,nk->nj", there.root, factors - there.mean)
  gain = there.value + there.log_density(back) - here.value - here.log_density(noise)
  taken = np.log(1 - rng.random(len(factors))) < gain
  return np.where(taken[:, np.newaxis], proposal, factors)


def _prior(rng: np.random.Generator, side: _Side, factors: np.ndarray, state: _State) -> _State:
  """Draws coefficients, precisions and shrinkage given the factors."""
  fixed = np.repeat(side.fixed, [1, factors.shape[1] - 1], axis=1)
  learned = np.isnan(fixed)
  shrinkage = np.where(learned, state.shrinkage, fixed)
  of_data = side.squares[:, np.newaxis] + shrinkage
  mean = side.features.T @ factors / of_data
  noise = rng.normal(size=mean.shape) / np.sqrt(of_data * state.precisions)
  coefficients = mean + noise
  residuals = (factors - side.features @ coefficients) ** 2
  sums = residuals.sum(axis=0) + (shrinkage * coefficients**2).sum(axis=0)
  size = len(factors) + len(coefficients)
  drawn = [
    _bounded_precision(rng, size * len(part), part.sum(), limit)
    for part, limit in zip(np.split(sums, [1]), _MAX_STDDEVS, strict=True)
  ]
  precisions = np.repeat(drawn, [1, len(sums) - 1])
  energy = (precisions * coefficients**2)[learned].sum()
  rate = _SHRINKAGE_RATE + energy / 2
  return _State(factors, coefficients, precisions, rng.gamma(1 + learned.sum() / 2) / rate)


def _bounded_precision(rng: np.random.Generator, size: int, squares: float, limit: float) -> float:
  """Draws the precision of normals with this sum of squares, and a standard deviation up to limit.

  The standard deviation is uniform below the limit, so that the precision is a gamma cut off below.
  """
  shape, least = (size - 1) / 2, limit**-2
  if size < 2 or not (above := gammaincc(shape, least * squares / 2)) > 0:
    return least
  return 2 * gammainccinv(shape, (1 - rng.random()) * above) / squares


def _solve_lower(root: np.ndarray, values: np.ndarray) -> np.ndarray:
  """x of root x = values, for lower triangles [n, K, K] and values [n, K]."""
  x = np.empty_like(values)
  for k in range(values.shape[1]):
    known = np.einsum("nj,nj->n", root[:, k, :k], x[:, :k])
    x[:, k] = (values[:, k] - known) / root[:, k, k]
  return x


def _solve_upper(root: np.ndarray, values: np.ndarray) -> np.ndarray:
  """x of rootᵀ x = values."""
  return _solve_lower(root.swapaxes(1, 2)[:, ::-1, ::-1], values[:, ::-1])[:, ::-1]


def _split_rhat(draws: np.ndarray) -> np.ndarray:
  """R-hat of chains [C, S, Q], each cut into halves: [Q]."""
  half = draws.shape[1] // 2
  halves = np.concatenate([draws[:, :half], draws[:, -half:]])
  within = halves.var(axis=1, ddof=1).mean(axis=0)
  between = halves.mean(axis=1).var(axis=0, ddof=1)
  with np.errstate(divide="ignore", invalid="ignore"):  # a summary that never changes
    rhat = np.sqrt((half - 1) / half + between / within)
  return np.where(within > 0, rhat, 1.0)


@tf.function(reduce_retracing=True)
def _moments(users: tf.Tensor, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Mean and standard deviation of Φ over draws, for users [S, m, 1 + D]: [m, N] each."""
  shape = [tf.shape(users)[1], tf.shape(items)[1]]
  total, squares = tf.zeros(shape), tf.zeros(shape)
  for s in tf.range(tf.shape(users)[0]):
    u, i = users[s], items[s]
    z = tf.matmul(u[:, 1:], i[:, 1:], transpose_b=True) + u[:, :1] + i[tf.newaxis, :, 0]
    probability = 0.5 + 0.5 * tf.math.erf(z * np.float32(0.5**0.5))
    total += probability
    squares += probability * probability
  count = tf.cast(tf.shape(users)[0], tf.float32)
  mean = total / count
  return mean, tf.sqrt(tf.maximum(squares / count - mean * mean, 0.0))
