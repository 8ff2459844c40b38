"""The Gibbs sampler of the probit factorisation: conditionals, recovery, convergence."""

import logging

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from tf_twostage.models import probit
from tf_twostage.models.probit import Posterior, Sampling, sample

USERS, ITEMS = 120, 40
QUICK = Sampling(width=1, sweeps=120, burn_in=40, draws=20)
NONE = np.zeros((USERS, 0))


@pytest.fixture(scope="module")
def world():
  """Rewards of users and items of different quality, 12 rows a user; users of a group are alike."""
  rng = np.random.default_rng(0)
  group = np.arange(USERS) % 2
  true_user, true_item = 1.2 * group - 0.6 + 0.3 * rng.normal(size=USERS), rng.normal(size=ITEMS)
  users, items = np.repeat(np.arange(USERS), 12), rng.integers(ITEMS, size=12 * USERS)
  probability = ndtr(true_user[:, None] + true_item)
  labels = (rng.random(len(users)) < probability[users, items]).astype(np.float32)
  return users, items, labels, np.eye(2)[group], probability


@pytest.fixture(scope="module")
def posterior(world):
  users, items, labels, features, _ = world
  return sample(users, items, labels, features, np.zeros((ITEMS, 0)), QUICK)


def test_it_recovers_probabilities(world, posterior):
  mean, deviation = posterior.moments()
  error = np.abs(mean - world[-1])
  assert error.mean() < 0.1
  # A standard deviation covers about two thirds of the errors.
  assert 0.5 < (error < deviation).mean() < 0.95


def test_users_without_rows_are_predicted_by_their_features(world):
  users, items, labels, features, probability = world
  seen = users >= 20
  found = sample(users[seen], items[seen], labels[seen], features, np.zeros((ITEMS, 0)), QUICK)
  mean = found.moments(np.arange(20))[0].mean(axis=1)
  assert mean[1::2].min() > mean[::2].max()
  assert np.abs(mean - probability[:20].mean(axis=1)).mean() < 0.1


def test_chains_of_an_easy_problem_agree(posterior):
  assert max(posterior.rhat.values()) < 1.5
  assert posterior.users.shape == (2 * 20, USERS, 2)
  assert posterior.items.shape == (2 * 20, ITEMS, 2)


def test_chains_that_did_not_converge_are_warned_of(world, caplog):
  users, items, labels, features, _ = world
  with caplog.at_level(logging.WARNING, "tf_twostage"):
    sample(
      users,
      items,
      np.ones_like(labels),  # factors grow as long as they are let
      features,
      np.zeros((ITEMS, 0)),
      Sampling(sweeps=12, burn_in=0, draws=2),
    )
  assert "have not converged" in caplog.text


def test_the_same_seed_gives_the_same_draws(world):
  users, items, labels, features, _ = world
  short = Sampling(sweeps=6, burn_in=2, draws=2, chains=1)
  first, second = (
    sample(users, items, labels, features, np.zeros((ITEMS, 0)), short) for _ in range(2)
  )
  np.testing.assert_array_equal(first.users, second.users)


def test_moments_are_those_of_the_draws(posterior):
  few = Posterior(posterior.users[:5, :3], posterior.items[:5])
  z = np.einsum("sud,snd->sun", few.users[..., 1:], few.items[..., 1:])
  p = ndtr(z + few.users[..., :1] + few.items[:, None, :, 0])
  for found, expected in zip(few.moments(), (p.mean(axis=0), p.std(axis=0)), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  pairs = few.pair_moments(np.array([2, 0]), np.array([7, 1]))
  np.testing.assert_allclose(pairs[0], p.mean(axis=0)[[2, 0], [7, 1]], rtol=1e-6)
  np.testing.assert_allclose(pairs[1], p.std(axis=0)[[2, 0], [7, 1]], rtol=1e-5)


def test_users_are_scored_in_chunks(posterior, monkeypatch):
  expected = posterior.moments()
  monkeypatch.setattr(probit, "_PAIRS_PER_CHUNK", 7 * ITEMS)
  for found, whole in zip(posterior.moments(), expected, strict=True):
    np.testing.assert_allclose(found, whole, atol=1e-4)


def test_fractional_labels_are_probabilities():
  users, items = np.repeat(np.arange(20), 50), np.zeros(1000, int)
  features = np.zeros((20, 0)), np.zeros((1, 0))
  found = sample(users, items, np.full(1000, 0.3), *features, QUICK)
  assert found.moments()[0].mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("size", "squares", "limit"), [(40, 30.0, 2.0), (40, 30.0, 0.8)])
def test_precisions_follow_a_gamma_that_is_cut_off(size, squares, limit):
  rng = np.random.default_rng(0)
  draws = [probit._bounded_precision(rng, size, squares, limit) for _ in range(4000)]
  gamma = stats.gamma((size - 1) / 2, scale=2 / squares)
  below = gamma.cdf(limit**-2)
  assert stats.kstest(draws, lambda x: (gamma.cdf(x) - below) / (1 - below)).pvalue > 0.01


def test_a_precision_far_below_the_limit_is_the_limit():
  rng = np.random.default_rng(0)
  assert probit._bounded_precision(rng, 10_000, 1e9, 2.0) == 0.25


def test_triangles_are_solved():
  rng = np.random.default_rng(0)
  root = np.linalg.cholesky(np.eye(3) + 0.3 * np.ones((4, 3, 3)))
  values = rng.normal(size=(4, 3))
  lower = np.linalg.solve(root, values[..., None])[..., 0]
  upper = np.linalg.solve(root.swapaxes(1, 2), values[..., None])[..., 0]
  np.testing.assert_allclose(probit._solve_lower(root, values), lower)
  np.testing.assert_allclose(probit._solve_upper(root, values), upper)


def test_factors_have_their_conditional_distribution():
  """Users with the same two rows, against the density on a grid."""
  users, prior, precisions = 4000, np.array([0.5, -1.0]), np.array([0.5, 3.0])
  index = np.repeat(np.arange(users), 2)
  of_row = np.array([[0.2, 1.0], [0.1, -2.0]])
  sign = np.array([1.0, -1.0])
  side = probit._Side.of(index, np.zeros((users, 0)), intercept=True)
  state = probit._State(np.zeros((users, 2)), prior[np.newaxis], precisions, 1.0)
  rng, rows, signs = np.random.default_rng(0), np.tile(of_row, (users, 1)), np.tile(sign, users)
  for _ in range(10):
    moved = probit._moved(rng, side, state, rows, signs)
    accepted = (moved != state.factors).any(axis=1).mean()
    state = state._replace(factors=moved)
  assert accepted > 0.7
  b, p = (x.ravel() for x in np.meshgrid(np.linspace(-6, 8, 281), np.linspace(-4, 2, 241)))
  density = np.exp(-precisions[0] * (b - 0.5) ** 2 / 2 - precisions[1] * (p + 1) ** 2 / 2)
  for (of_item, q), one in zip(of_row, sign, strict=True):
    density *= ndtr(one * (b + of_item + p * q))
  grid, weights = np.stack([b, p]), density / density.sum()
  mean, covariance = grid @ weights, np.cov(grid, aweights=weights, ddof=0)
  errors = np.sqrt(np.diag(covariance) / users)
  assert (np.abs(state.factors.mean(axis=0) - mean) < 4 * errors).all()
  np.testing.assert_allclose(np.cov(state.factors.T), covariance, atol=0.08)


def test_whoever_has_no_rows_follows_the_prior():
  side = probit._Side.of(np.array([1, 1]), np.zeros((5000, 0)), intercept=True)
  state = probit._State(np.array([[9.0, 9.0]]), np.array([[0.5, -1.0]]), np.array([4.0, 1.0]), 1.0)
  drawn = side.draw_all(np.random.default_rng(0), state)
  assert drawn[1].tolist() == [9.0, 9.0]
  others = np.delete(drawn, 1, axis=0)
  np.testing.assert_allclose(others.mean(axis=0), [0.5, -1.0], atol=0.06)
  np.testing.assert_allclose(others.std(axis=0), [0.5, 1.0], atol=0.05)
