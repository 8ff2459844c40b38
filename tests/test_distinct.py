"""The two-stage policy on distinct items, against enumeration of independent inclusion."""

import numpy as np
import pytest
import scipy.stats

from tests.oracle import inclusion, softmax
from tests.policy_oracle import enumerate_inclusion
from tf_twostage.distinct import (
  DistinctPolicy,
  distinct_log_prob,
  distinct_probabilities,
  inclusion_probabilities,
  ring_times,
)

import tensorflow as tf  # isort: skip

ITEMS = 8
SCORES = [(0.0, 1.0), (1.0, 1.0), (3.0, 4.0), (1.0, 20.0)]  # spreads of logits and ranker logits


def scores(seed, spreads=(1.0, 1.0), items=ITEMS):
  rng = np.random.default_rng(seed)
  return [rng.normal(scale=spread, size=items) if spread else np.zeros(items) for spread in spreads]


def log_probs(logits, ranker_logits, slate_size, copies=None):
  """log π of every action in turn, [N]."""
  n = len(logits)
  logits = np.broadcast_to(logits, (n, n))
  ranker_logits = np.broadcast_to(ranker_logits, (n, n))
  return sum(distinct_log_prob(logits, ranker_logits, np.arange(n), slate_size, copies)).numpy()


def jacobian(function, logits):
  """∂ function / ∂ logits by central differences, [N, N]."""
  steps = 1e-5 * np.eye(len(logits))
  return np.stack([(function(logits + h) - function(logits - h)) / 2e-5 for h in steps], 1)


@pytest.mark.parametrize("spreads", SCORES)
@pytest.mark.parametrize("slate_size", [1, 3, 7])
def test_policy_and_inclusion_equal_enumeration(spreads, slate_size):
  logits, ranker_logits = scores(slate_size, spreads)
  policy = DistinctPolicy(logits[None], ranker_logits[None], slate_size)
  expected = enumerate_inclusion(logits, ranker_logits, slate_size)
  np.testing.assert_allclose(policy.inclusion()[0], inclusion(logits, slate_size), atol=1e-5)
  np.testing.assert_allclose(policy.probabilities()[0], expected, atol=1e-4)
  np.testing.assert_allclose(
    np.exp(log_probs(logits, ranker_logits, slate_size)), expected, atol=1e-4
  )


@pytest.mark.parametrize("spreads", SCORES)
def test_gradients_equal_those_of_enumeration(spreads):
  logits, ranker_logits = scores(5, spreads)
  expected = jacobian(lambda z: enumerate_inclusion(z, ranker_logits, 3), logits)
  z, g = (tf.constant(np.tile(v, (ITEMS, 1))) for v in (logits, ranker_logits))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(z)
    shown = distinct_probabilities(z, g, 3)
    included = inclusion_probabilities(z, 3)
    single = tf.exp(sum(distinct_log_prob(z, g, range(ITEMS), 3)))
  each = tf.eye(ITEMS, dtype=z.dtype)  # row a asks for the gradient of action a
  np.testing.assert_allclose(tape.gradient(shown, z, each), expected, atol=1e-4)
  np.testing.assert_allclose(tape.gradient(single, z), expected, atol=1e-4)
  of_inclusion = jacobian(lambda z: inclusion(z, 3), logits)
  np.testing.assert_allclose(tape.gradient(included, z, each), of_inclusion, atol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("slate_size", [1, 30])
def test_inclusion_in_large_catalogues_solves_the_equation(spread, slate_size):
  logits = scores(0, (spread,), 3001)[0]
  found = inclusion_probabilities(np.float32(logits[None]), slate_size).numpy()[0]
  np.testing.assert_allclose(found, inclusion(logits, slate_size), rtol=5e-5)


def test_many_excluded_items_leave_the_others_as_they_are():
  """Of groups of items, few have one that can be a candidate."""
  logits = scores(0, (1.0,), 40)[0]
  every = np.full(4000, -np.inf, np.float32)
  every[::100] = logits
  found = inclusion_probabilities(every[None], 39).numpy()[0]
  np.testing.assert_allclose(found[::100], inclusion(logits, 39), rtol=5e-5)


@pytest.mark.parametrize("slate_size", [2, 5, 30])
def test_large_catalogues_equal_a_fine_quadrature(slate_size):
  rng = np.random.default_rng(0)
  logits, ranker_logits = rng.normal(scale=1.5, size=(2, 500))
  pi = inclusion(logits, slate_size)
  x = -np.log1p(-pi)
  actions = np.argsort(-(logits + ranker_logits))[:40:4]
  y = np.arange(-15, 6, 0.02)
  expected = []
  for a in actions:
    others = np.arange(500) != a
    clocks = np.exp(-np.exp(ranker_logits[others, None] + y))
    log_absent = np.log(np.exp(-x[others, None]) + pi[others, None] * clocks).sum(0)
    v = ranker_logits[a] + y
    expected.append(pi[a] * 0.02 * np.exp(v - np.exp(v) + log_absent).sum())
  expected = np.array(expected) / -np.expm1(-x.sum())
  rows = [np.broadcast_to(v, (len(actions), 500)) for v in (logits, ranker_logits)]
  single = np.exp(sum(distinct_log_prob(*rows, actions, slate_size)))
  np.testing.assert_allclose(single, expected, rtol=2e-3)
  every = distinct_probabilities(rows[0][:1], rows[1][:1], slate_size).numpy()[0]
  np.testing.assert_allclose(every[actions], expected, rtol=1e-2)
  assert every.sum() == pytest.approx(1, abs=1e-3)


def test_samples_have_the_probabilities_of_the_policy():
  logits, ranker_logits = scores(1, (1.5, 1.0))
  rows = 200_000
  policy = DistinctPolicy(np.tile(logits, (rows, 1)), np.tile(ranker_logits, (rows, 1)), 2)
  shown = np.bincount(policy.sample((3, 4)), minlength=ITEMS)
  expected = enumerate_inclusion(logits, ranker_logits, 2)
  assert scipy.stats.chisquare(shown, expected * rows).pvalue > 0.001


def test_slates_hold_items_as_often_as_their_clocks_ring_given_that_one_does():
  logits = np.array([2.0, 0.0, -1.0, -6.0, -np.inf])
  pi = inclusion(logits, 1)
  rows = 200_000
  uniform = tf.random.stateless_uniform([rows, 5], (1, 2), dtype=tf.float64)
  times = ring_times(np.tile(logits, (rows, 1)), 1, uniform).numpy()
  held = np.isfinite(times)
  assert held.any(1).all()
  some = 1 - np.prod(1 - pi)
  expected = pi / some
  np.testing.assert_array_less(
    np.abs(held.mean(0) - expected), 1e-9 + 5 * np.sqrt(expected * (1 - expected) / rows)
  )
  pairs = pi[0] * pi[1] / some  # items are independent, but for empty slates
  assert abs((held[:, 0] & held[:, 1]).mean() - pairs) < 5 * np.sqrt(pairs / rows)


def test_inclusion_is_near_that_of_plackett_luce_slates():
  """K = 8 of 50 with spread scores."""
  logits, ranker_logits = scores(0, (2.0, 2.0), 50)
  rng = np.random.default_rng(1)
  clocks = logits + rng.gumbel(size=(100_000, 50))
  slates = np.argsort(-clocks, axis=1)[:, :8]
  share = softmax(ranker_logits[slates])
  expected = np.bincount(slates.ravel(), weights=share.ravel(), minlength=50) / len(slates)
  shown = distinct_probabilities(logits[None], ranker_logits[None], 8).numpy()[0]
  assert np.abs(shown - expected).sum() / 2 < 0.03


def test_what_stands_for_several_items_counts_as_these():
  logits, ranker_logits = scores(2, (1.0, 2.0))
  copies = np.array([1, 3, 1, 2, 1, 1, 5, 1])
  repeated = [np.repeat(v, copies) for v in (logits, ranker_logits)]
  first = np.cumsum(copies) - copies
  single = log_probs(logits, ranker_logits, 3, copies)
  np.testing.assert_allclose(single, log_probs(*repeated, 3)[first], atol=1e-4)
  every = distinct_probabilities(logits[None], ranker_logits[None], 3, copies).numpy()[0]
  apart = distinct_probabilities(repeated[0][None], repeated[1][None], 3).numpy()[0]
  np.testing.assert_allclose(every, np.add.reduceat(apart, first), atol=1e-4)
  np.testing.assert_allclose(
    inclusion_probabilities(logits[None], 3, copies)[0],
    np.add.reduceat(inclusion_probabilities(repeated[0][None], 3).numpy()[0], first),
    atol=1e-5,
  )


@pytest.mark.parametrize("items", [3, 200])
def test_the_whole_catalogue_is_ranked_if_slates_hold_it(items):
  logits, ranker_logits = scores(3, (1.0, 1.0), items)
  shown = distinct_probabilities(logits[None], ranker_logits[None], items).numpy()[0]
  np.testing.assert_allclose(shown, softmax(ranker_logits), rtol=2e-3)


def test_excluded_items_are_never_candidates():
  logits, ranker_logits = scores(4, (1.0, 1.0))
  some = logits.copy()
  some[[1, 5]] = -np.inf
  rest = np.isfinite(some)
  shown = distinct_probabilities(some[None], ranker_logits[None], 3).numpy()[0]
  expected = enumerate_inclusion(logits[rest], ranker_logits[rest], 3)
  np.testing.assert_allclose(shown[rest], expected, atol=1e-4)
  assert not shown[~rest].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_of_invalid_numbers_are_nan_and_leave_others_alone(bad, side):
  rows = [np.stack(pair) for pair in zip(scores(5), scores(6), strict=True)]
  expected = distinct_probabilities(*rows, 3).numpy()[1]
  rows[side][0, 2] = bad
  shown = distinct_probabilities(*rows, 3).numpy()
  assert np.isnan(shown[0]).all()
  np.testing.assert_array_equal(shown[1], expected)
  single = sum(distinct_log_prob(*rows, [0, 0], 3)).numpy()
  assert np.isnan(single[0])
  assert np.isfinite(single[1])


def test_ranker_logits_beyond_a_window_keep_their_order():
  logits = np.zeros(6)
  ranker_logits = np.array([0.0, -1.0, -70.0, -71.0, -200.0, -201.0])
  shown = distinct_probabilities(logits[None], ranker_logits[None], 2).numpy()[0]
  np.testing.assert_allclose(shown, enumerate_inclusion(logits, ranker_logits, 2), atol=1e-4)
