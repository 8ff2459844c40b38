"""Policies: the two-stage quadrature against enumeration, gradients, draws and extremes."""

import numpy as np
import pytest
import tensorflow as tf

from tests.oracle import softmax
from tests.policy_oracle import enumerate_slates, ranker_share
from tf_twostage.errors import InputError
from tf_twostage.policies import SoftmaxPolicy, TwoStagePolicy, two_stage_log_prob

ITEMS, SLATE = 6, 3


def tiny(seed, spread=2.0):
  rng = np.random.default_rng(seed)
  logits, ranker = rng.normal(size=(2, 1, ITEMS)).astype(np.float32)
  return logits, spread * ranker


def jacobian(function, logits):
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    values = function(logits)
  return values, tape.batch_jacobian(values, logits)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_and_gradient_equal_enumeration(seed):
  logits, ranker = tiny(seed)
  expected = enumerate_slates(logits[0], ranker[0], SLATE)
  values, gradient = jacobian(lambda z: TwoStagePolicy(z, ranker, SLATE).probabilities(), logits)
  np.testing.assert_allclose(values[0], expected.probabilities, atol=1e-4)
  np.testing.assert_allclose(gradient[0], expected.jacobian, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_log_prob_of_an_action_and_its_gradient_equal_enumeration(seed):
  logits, ranker = (np.repeat(x, ITEMS, axis=0) for x in tiny(seed))
  expected = enumerate_slates(logits[0], ranker[0], SLATE)
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_prob = TwoStagePolicy(logits, ranker, SLATE).log_prob(tf.range(ITEMS))
  np.testing.assert_allclose(tf.exp(log_prob), expected.probabilities, atol=1e-4)
  gradient = tape.gradient(log_prob, logits)
  np.testing.assert_allclose(
    gradient, expected.jacobian / expected.probabilities[:, None], atol=1e-3
  )


@pytest.mark.parametrize("slate_size", [2, 30, 200])
@pytest.mark.parametrize("spread", [0.1, 5.0, 50.0])
def test_ranker_share_is_within_a_thousandth_of_fine_quadrature(spread, slate_size):
  rng = np.random.default_rng(int(spread))
  items = 400
  logits = 3 * rng.normal(size=items)
  ranker = rng.uniform(-spread, spread, size=items)
  actions = np.arange(items)
  expected = ranker_share(softmax(logits), ranker, actions, slate_size)
  policy = TwoStagePolicy(
    np.repeat(logits[None], items, 0).astype(np.float32),
    np.repeat(ranker[None], items, 0).astype(np.float32),
    slate_size,
  )
  seen = expected >= 1e-6
  assert seen.any()
  np.testing.assert_allclose(policy.ranker_share(actions).numpy()[seen], expected[seen], rtol=1e-3)


def test_ranker_logits_receive_no_gradient():
  logits, ranker = map(tf.constant, tiny(0))
  with tf.GradientTape() as tape:
    tape.watch(ranker)
    value = TwoStagePolicy(logits, ranker, SLATE).log_prob([2])
  assert tape.gradient(value, ranker) is None


@pytest.mark.parametrize("slate_size", [1, 2, 30])
def test_probabilities_sum_to_one(slate_size):
  rng = np.random.default_rng(1)
  logits, ranker = 4 * rng.normal(size=(2, 5, 300)).astype(np.float32)
  total = TwoStagePolicy(logits, ranker, slate_size).probabilities().numpy().sum(axis=1)
  np.testing.assert_allclose(total, 1.0, atol=2e-4)


def test_a_slate_of_one_is_the_generator():
  logits, ranker = tiny(0)
  two_stage, softmax_policy = TwoStagePolicy(logits, ranker, 1), SoftmaxPolicy(logits)
  np.testing.assert_allclose(two_stage.probabilities(), softmax_policy.probabilities())
  np.testing.assert_allclose(two_stage.log_prob([3]), softmax_policy.log_prob([3]))


def test_an_indifferent_ranker_shares_the_slate_evenly():
  logits, _ = tiny(0)
  policy = TwoStagePolicy(logits, np.full_like(logits, 7.0), 5)
  np.testing.assert_allclose(policy.ranker_share([1]), 1 / 5, rtol=1e-3)
  np.testing.assert_allclose(
    policy.probabilities(), SoftmaxPolicy(logits).probabilities(), rtol=1e-3
  )


def test_excluded_items_have_no_probability():
  logits, ranker = tiny(0)
  logits[0, 2] = -np.inf
  probabilities = TwoStagePolicy(logits, ranker, SLATE).probabilities().numpy()[0]
  assert probabilities[2] == 0
  kept = np.delete(np.arange(ITEMS), 2)
  expected = enumerate_slates(logits[0, kept], ranker[0, kept], SLATE).probabilities
  np.testing.assert_allclose(probabilities[kept], expected, atol=1e-4)


@pytest.mark.parametrize("scale", [50.0, 1e4])
@pytest.mark.parametrize("which", ["logits", "ranker"])
def test_extreme_scores_stay_finite(which, scale):
  logits, ranker = tiny(3)
  logits, ranker = (scale * logits, ranker) if which == "logits" else (logits, scale * ranker)
  logits = tf.constant(np.repeat(logits, ITEMS, axis=0))
  with tf.GradientTape() as tape:
    tape.watch(logits)
    log_p, log_share = two_stage_log_prob(
      logits, np.repeat(ranker, ITEMS, axis=0), np.arange(ITEMS), 30
    )
    loss = tf.reduce_sum(log_p + log_share)
  assert np.all(np.isfinite(loss))
  assert np.all(np.isfinite(tape.gradient(loss, logits)))


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_draws_follow_the_probabilities(policy):
  draws = 20_000
  logits, ranker = (np.repeat(x, draws, axis=0) for x in tiny(5))
  made = SoftmaxPolicy(logits) if policy == "softmax" else TwoStagePolicy(logits, ranker, SLATE)
  counts = np.bincount(made.sample([1, 2]), minlength=ITEMS)
  expected = draws * made.probabilities().numpy()[0]
  chi_square = np.sum((counts - expected) ** 2 / expected)
  assert chi_square < 25.7  # the 0.9999 quantile at 5 degrees of freedom


def test_entropy_is_that_of_the_probabilities():
  logits, ranker = tiny(0)
  for policy in (SoftmaxPolicy(logits), TwoStagePolicy(logits, ranker, SLATE)):
    p = policy.probabilities().numpy()[0].astype(np.float64)
    np.testing.assert_allclose(policy.entropy(), [-np.sum(p * np.log(p))], rtol=1e-5)


def test_top_k_orders_the_generators_slate_by_the_ranker():
  logits = np.array([[4.0, 3.0, 2.0, 1.0]], np.float32)
  ranker = np.array([[0.0, 2.0, 1.0, 9.0]], np.float32)
  ids, scores = TwoStagePolicy(logits, ranker, 3).top_k(2)
  np.testing.assert_array_equal(ids, [[1, 2]])
  np.testing.assert_array_equal(scores, [[2.0, 1.0]])


def test_eager_equals_graph():
  logits, ranker = tiny(2)

  def probabilities():
    return TwoStagePolicy(logits, ranker, SLATE).probabilities()

  np.testing.assert_allclose(probabilities(), tf.function(probabilities)(), rtol=1e-6)


def test_wrong_shapes_are_named():
  with pytest.raises(InputError, match="must have one shape"):
    TwoStagePolicy(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), 2)
  with pytest.raises(InputError, match="slate_size must be at least 1"):
    TwoStagePolicy(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), 0)
