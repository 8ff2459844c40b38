"""Exact 2-IPS: formula, identities, and how far it is from slates of distinct items."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import RAW, batch, every_action, value_and_gradient
from tests.policy_oracle import enumerate_slates, ranker_probability
from tf_twostage.losses import IPS, ImportanceWeights, TwoStageIPS
from tf_twostage.losses.slates import expected_counts


def exact(importance=ImportanceWeights(), alpha=1.0, **options):  # noqa: B008
  """The exact gradient: slates of the policy itself, the others' share in full."""
  return TwoStageIPS(
    importance,
    alpha=alpha,
    sampling="exact",
    **{"sampling_temperature": 1.0, "dtype": "float64", **options},
  )


@pytest.mark.parametrize("temperature", [1.0, math.e])
@pytest.mark.parametrize("slate_size", [1, 2, 4])
def test_counts_are_those_of_all_slates(slate_size, temperature):
  x = batch()
  counts, share = expected_counts(
    tf.constant(x["logits"]),
    tf.constant(x["actions"]),
    tf.constant(x["ranker_logits"]),
    slate_size=slate_size,
    temperature=temperature,
    alpha=0.3,
  )
  rows = zip(x["logits"], x["actions"], x["ranker_logits"], strict=True)
  for i, (logits, action, ranker_logits) in enumerate(rows):
    expected = oracle.expected_slate_coefficients(
      oracle.softmax(logits / temperature),
      action,
      ranker_logits,
      0.3,
      slate_size,
      oracle.multiset_coefficients,
    )
    np.testing.assert_allclose(counts[i], expected, rtol=1e-3, atol=1e-6)
    without = oracle.expected_slate_coefficients(
      oracle.softmax(logits / temperature),
      action,
      ranker_logits,
      0.0,
      slate_size,
      oracle.multiset_coefficients,
    )
    np.testing.assert_allclose(share[i], without[action], rtol=3e-4)


def test_no_gradient_flows_through_counts():
  logits = tf.constant(batch()["logits"])
  x = batch()
  with tf.GradientTape() as tape:
    tape.watch(logits)
    counts, share = expected_counts(
      logits,
      tf.constant(x["actions"]),
      tf.constant(x["ranker_logits"]),
      slate_size=3,
      temperature=1.0,
      alpha=1.0,
    )
    total = tf.reduce_sum(counts) + tf.reduce_sum(share)
  assert tape.gradient(total, logits) is None


def test_reports_what_the_loss_was_made_of():
  x = batch()
  terms = exact(slate_size=4).terms(**x)
  rows = zip(oracle.softmax(x["logits"]), x["ranker_logits"], x["actions"], strict=True)
  shares = [ranker_probability(p, g, np.array([a]), 4)[0] for p, g, a in rows]
  np.testing.assert_allclose(terms.ranker_probability, shares, rtol=3e-4)
  one_stage = IPS(dtype="float64").terms(**x)
  np.testing.assert_allclose(terms.ratio, one_stage.ratio, rtol=1e-9)
  np.testing.assert_allclose(terms.weights, one_stage.weights, rtol=1e-9)


def test_gradient_with_raw_weights_is_that_of_ips_on_the_two_stage_policy_over_k():
  x = batch()
  two_stage = exact(RAW, slate_size=7)
  ips = IPS(RAW, policy="two_stage", slate_size=7, dtype="float64")
  gradients = [value_and_gradient(loss, x)[1] for loss in (two_stage, ips)]
  np.testing.assert_allclose(7 * gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_unbiased_for_the_value_of_two_stages_over_k(seed):
  rng = np.random.default_rng(seed)
  logits, ranker_logits, behavior_logits = rng.normal(size=(3, 5))
  rewards, behavior = rng.uniform(size=5), oracle.softmax(behavior_logits)
  x = every_action(logits, ranker_logits, behavior, rewards)
  _, gradient = value_and_gradient(exact(RAW, slate_size=3), x)
  expected = -enumerate_slates(logits, ranker_logits, 3).jacobian.T @ rewards
  np.testing.assert_allclose(3 * behavior @ gradient, expected, atol=2e-4)


def test_gradient_without_alpha_is_one_stage_ips_times_the_ranker_share():
  x = batch()
  loss = exact(alpha=0.0, slate_size=4)
  value, gradient = value_and_gradient(loss, x)
  share = loss.terms(**x).ranker_probability.numpy()
  one_stage, expected = value_and_gradient(IPS(dtype="float64"), x)
  np.testing.assert_allclose(value, share * one_stage, rtol=1e-9)
  np.testing.assert_allclose(gradient, share[:, None] * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_with_a_constant_ranker_the_gradient_is_one_stage_ips_over_k(alpha):
  # Whatever the other candidates are, the share is 1 / K: their gradient is 0.
  x = {**batch(), "ranker_logits": np.full((6, 5), 3.7)}
  _, gradient = value_and_gradient(exact(alpha=alpha, slate_size=8), x)
  _, expected = value_and_gradient(IPS(dtype="float64"), x)
  np.testing.assert_allclose(8 * gradient, expected, rtol=1e-3, atol=1e-3)


def test_alpha_moves_the_gradient_along_a_line():
  x = batch()

  def gradient(alpha):
    loss = exact(alpha=alpha, slate_size=4)
    return value_and_gradient(loss, x)[1]

  step = gradient(1.0) - gradient(0.0)
  assert np.abs(step).max() > 0.01
  np.testing.assert_allclose(gradient(0.3), gradient(0.0) + 0.3 * step, atol=1e-12)


def test_the_gradient_of_a_rival_depends_on_the_ranker():
  """Items with equal logits are pushed down alike in one stage; with α, the rival that would win
  against the logged item more than the one that would not."""
  x = {
    "logits": np.zeros((1, 3)),
    "actions": np.array([0]),
    "propensities": np.array([0.3]),
    "rewards": np.ones(1),
    "ranker_logits": np.array([[0.0, 3.0, -3.0]]),
  }

  def rivals(alpha):
    loss = exact(alpha=alpha, slate_size=5)
    return value_and_gradient(loss, x)[1][0, 1:]

  np.testing.assert_allclose(*rivals(0.0), rtol=1e-9)
  strong, weak = rivals(1.0)
  assert strong > weak + 0.01


def test_normalised_shares_make_the_mean_of_weight_times_share_one():
  x = batch()
  plain, normalised = (exact(slate_size=4, normalize_shares=on) for on in (False, True))
  terms = normalised.terms(**x)
  np.testing.assert_allclose(np.mean(terms.weights * terms.ranker_probability), 1.0, rtol=1e-12)
  # All rows grow alike, and so does the gradient: the divisor has none.
  terms = plain.terms(**x)
  factor = 1 / np.mean(terms.weights * terms.ranker_probability)
  expected = factor * value_and_gradient(plain, x)[1]
  np.testing.assert_allclose(value_and_gradient(normalised, x)[1], expected, rtol=1e-9, atol=1e-12)


def test_the_number_of_slates_and_the_seed_do_not_matter():
  x = batch()
  one, many = (exact(num_slates=n, seed=n, slate_size=4) for n in (1, 100))
  np.testing.assert_array_equal(one(**x), many(**x))
  np.testing.assert_array_equal(one(**x), one(**x))


def test_slates_of_one_are_one_stage_ips():
  x = batch()
  value, gradient = value_and_gradient(exact(alpha=0.0, slate_size=1), x)
  one_stage, expected = value_and_gradient(IPS(dtype="float64"), x)
  np.testing.assert_allclose(value, one_stage, rtol=1e-9)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


class TestMonteCarlo:
  """What `TwoStageIPS` samples comes closer to the exact expectation at the rate 1/sqrt(τ)."""

  def estimates(self, logits, ranker_logits, rows, **options):
    """Estimates of one expectation, [rows]: loss and share of item 0."""
    x = {
      "logits": np.tile(logits, (rows, 1)),
      "actions": np.zeros(rows, int),
      "propensities": np.full(rows, 0.5),
      "rewards": np.ones(rows),
      "ranker_logits": np.tile(ranker_logits, (rows, 1)),
    }
    tf.random.set_seed(0)
    terms = TwoStageIPS(**{"sampling_temperature": 1.0, **options}, seed=3, dtype="float64").terms(
      **x
    )
    return terms.loss.numpy(), terms.ranker_probability.numpy()

  @pytest.mark.parametrize("temperature", [1.0, math.e])
  @pytest.mark.parametrize("sampling", ["categorical", "systematic"])
  def test_agrees_with_the_expectation_where_repeats_are_rare(self, sampling, temperature):
    # 20,000 items and 29 draws: a slate holds 29 * 28 / 2 * Σp² = 0.05 repeats, each of which
    # would change the share, and the number of others, by about 1/30 of them.
    rng = np.random.default_rng(0)
    logits, ranker_logits = 0.5 * rng.normal(size=(2, 20_000))
    repeats = 29 * 28 / 2 * np.sum(np.square(oracle.softmax(logits / temperature)))
    assert repeats < 0.06
    options = {"alpha": 0.3, "slate_size": 30, "sampling_temperature": temperature}
    exact = self.estimates(logits, ranker_logits, 1, sampling="exact", **options)
    sampled = self.estimates(logits, ranker_logits, 8, sampling=sampling, num_slates=200, **options)
    for values, (expected,) in zip(sampled, exact, strict=True):
      error = 4 * values.std(ddof=1) / np.sqrt(8)
      assert error < 0.03 * expected
      assert abs(values.mean() - expected) < error + repeats / 30 * expected

  def test_errors_fall_like_the_root_of_the_number_of_slates(self):
    # With few items, slates of distinct ones have an expectation of their own: by enumeration.
    rng = np.random.default_rng(1)
    logits, ranker_logits = rng.normal(size=(2, 5))
    p = oracle.softmax(logits)
    expected = oracle.expected_slate_coefficients(p, 0, ranker_logits, 0.0, 4)[0]
    errors = []
    for tau in (4, 64, 1024):
      _, shares = self.estimates(logits, ranker_logits, 400, num_slates=tau, slate_size=4)
      errors.append(np.sqrt(np.mean(np.square(shares - expected))))
    # A root mean square of 400 rows is known to 1/sqrt(800) = 3.5%.
    np.testing.assert_allclose(errors[:-1] / np.array(errors[1:]), [4.0, 4.0], rtol=0.2)


class TestDistinctSlates:
  """The quadrature counts draws with multiplicity; what if repeats competed only once?"""

  @pytest.fixture(scope="class")
  def catalogues(self):
    """50 random catalogues of 6 items, slates of 3: exact policies with and without repeats."""
    pairs = []
    for seed in range(50):
      logits, ranker_logits = np.random.default_rng(seed).normal(size=(2, 6))
      with_repeats = enumerate_slates(logits, 2 * ranker_logits, 3)
      pairs.append((with_repeats, oracle.distinct_slate_policy(logits, 2 * ranker_logits, 3)))
    return pairs

  def test_probabilities_of_a_tiny_catalogue_differ_by_a_few_percent(self, catalogues):
    largest = [np.abs(m.probabilities - d).max() for m, (d, _) in catalogues]
    assert 0.012 < np.mean(largest) < 0.015
    assert 0.04 < np.max(largest) < 0.06

  def test_gradients_of_a_tiny_catalogue_differ_by_a_few_percent(self, catalogues):
    largest = [np.abs(m.jacobian - d).max() for m, (_, d) in catalogues]
    assert 0.016 < np.mean(largest) < 0.020
    assert 0.03 < np.max(largest) < 0.04

  def test_slates_of_two_do_not_differ(self):
    logits, ranker_logits = np.random.default_rng(0).normal(size=(2, 6))
    distinct, _ = oracle.distinct_slate_policy(logits, ranker_logits, 2)
    expected = enumerate_slates(logits, ranker_logits, 2).probabilities
    np.testing.assert_allclose(distinct, expected, rtol=1e-12)

  @pytest.mark.parametrize("slate_size", [2, 3, 4])
  def test_the_generating_function_of_the_oracle_equals_enumeration(self, slate_size):
    logits, ranker_logits = np.random.default_rng(4).normal(size=(2, 5))
    p = oracle.softmax(logits)
    probabilities = oracle.distinct_slate_probabilities(p, 2 * ranker_logits, slate_size)
    expected, _ = oracle.distinct_slate_policy(logits, 2 * ranker_logits, slate_size)
    np.testing.assert_allclose(probabilities, expected, atol=1e-9)

  def test_the_derivatives_of_the_oracle_are_those_of_its_probabilities(self):
    logits, ranker_logits = np.random.default_rng(4).normal(size=(2, 5))
    _, derivatives = oracle.distinct_slate_policy(logits, ranker_logits, 3)
    expected = oracle.jacobian(
      lambda z: oracle.distinct_slate_policy(z, ranker_logits, 3)[0], logits
    )
    np.testing.assert_allclose(derivatives, expected, atol=1e-8)

  def test_a_larger_catalogue_differs_less(self):
    """1,000 items and slates of 30: a thousandth, and one shown item in a hundred is another."""
    logits, ranker_logits = np.random.default_rng(0).normal(size=(2, 1000))
    p = oracle.softmax(logits)
    with_repeats = 30 * p * ranker_probability(p, 2 * ranker_logits, np.arange(1000), 30)
    distinct = oracle.distinct_slate_probabilities(p, 2 * ranker_logits, 30, step=0.5)
    difference = np.abs(with_repeats - distinct)
    assert 1e-4 < difference.max() < 5e-3
    assert 0.005 < difference.sum() / 2 < 0.012
