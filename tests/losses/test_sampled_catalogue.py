"""A part of the catalogue in place of the whole."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.helpers import RAW, batch, every_variant, make, value_and_gradient
from tf_twostage.losses import IPS, CrossEntropy, draw_support, on_support


def restricted(x, support, log_q):
  """The batch on a support: what a model that scores the support alone passes on."""
  logits, positions = on_support(tf.constant(x["logits"][:, support]), support, log_q, x["actions"])
  ranker_logits = x["ranker_logits"][:, support]
  return {**x, "logits": logits, "actions": positions, "ranker_logits": ranker_logits}


class TestOnSupport:
  def test_logits_lose_log_q_and_actions_become_positions(self):
    logits, positions = on_support(
      tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
      tf.constant([7, 2, 9]),
      tf.math.log([1.0, 0.5, 0.25]),
      tf.constant([9, 7]),
    )
    np.testing.assert_array_equal(positions, [2, 0])
    assert positions.dtype == tf.int32
    expected = [[1, 2 + np.log(2), 3 + np.log(4)], [4, 5 + np.log(2), 6 + np.log(4)]]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)

  def test_log_q_may_differ_from_row_to_row(self):
    log_q = np.log([[1.0, 0.5], [0.5, 0.25]])
    logits, _ = on_support(tf.zeros([2, 2], tf.float64), [3, 4], log_q, [3, 4])
    np.testing.assert_allclose(logits, -log_q, rtol=1e-12)

  @every_variant()
  def test_the_whole_catalogue_is_the_full_loss(self, variant):
    x = batch()
    support, log_q = draw_support(x["actions"], num_items=5, size=5)
    part = restricted(x, support.numpy(), log_q)

    def fresh(inputs):  # one that has drawn before draws other slates
      tf.random.set_seed(0)
      return value_and_gradient(make(variant, dtype="float64"), inputs)

    value, gradient = fresh(part)
    expected, expected_gradient = fresh(x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)

  # Slates are drawn in the order of the support.
  @every_variant(without=("two_stage_ips",))
  def test_the_order_of_the_support_does_not_matter(self, variant):
    x = batch()
    loss = make(variant, dtype="float64")
    value = loss(**restricted(x, np.array([3, 0, 4, 2, 1]), np.zeros(5)))
    np.testing.assert_allclose(value, loss(**x), rtol=1e-9)

  def test_a_common_constant_in_log_q_cancels(self):
    x = batch()
    loss = IPS(dtype="float64")
    shifted = loss(**restricted(x, np.arange(5), np.full(5, -3.0)))
    np.testing.assert_allclose(shifted, loss(**x), rtol=1e-9)

  def test_the_gradient_reaches_the_logits_of_the_support(self):
    x = batch()
    logits = tf.constant(x["logits"])
    with tf.GradientTape() as tape:
      tape.watch(logits)
      corrected, _ = on_support(logits, np.arange(5), np.full(5, -1.0), x["actions"])
    np.testing.assert_array_equal(tape.gradient(corrected, logits), np.ones((6, 5)))

  @pytest.mark.parametrize("actions", [[4, 0], [2, 9], [2, 5]])
  @pytest.mark.parametrize("compiled", [False, True])
  def test_an_action_outside_the_support_is_an_error(self, actions, compiled):
    function = tf.function(on_support) if compiled else on_support
    arguments = (tf.zeros([2, 3]), tf.constant([2, 8, 4]), tf.zeros(3), tf.constant(actions))
    with pytest.raises(tf.errors.InvalidArgumentError, match="an action is not in the support"):
      function(*arguments)[1].numpy()


class TestDrawSupport:
  def draws(self, actions, num_items, size, times):
    step = tf.function(lambda: draw_support(actions, num_items=num_items, size=size, seed=1))
    tf.random.set_seed(0)
    return np.stack([step()[0].numpy() for _ in range(times)])

  def test_holds_the_actions_once_each_and_fills_up(self):
    support, log_q = draw_support(np.array([3, 7, 3, 0]), num_items=10, size=6)
    assert support.shape == log_q.shape == (6,)
    assert support.dtype == tf.int32
    np.testing.assert_array_equal(support, np.unique(support))
    assert {0, 3, 7} <= set(support.numpy()) <= set(range(10))

  def test_log_q_is_the_probability_to_be_in_it(self):
    # Three places for the seven that were not logged.
    support, log_q = draw_support(np.array([3, 7, 3, 0]), num_items=10, size=6)
    expected = np.where(np.isin(support, [0, 3, 7]), 0.0, np.log(3 / 7))
    np.testing.assert_allclose(log_q, expected, rtol=1e-6)

  @pytest.mark.parametrize(("size", "log_q"), [(3, [0, 0, 0]), (5, [0, 0, 0, 0, 0])])
  def test_smallest_and_largest_support(self, size, log_q):
    support, given = draw_support(np.array([3, 1, 0]), num_items=5, size=size)
    np.testing.assert_array_equal(support, [0, 1, 3] if size == 3 else np.arange(5))
    np.testing.assert_array_equal(given, log_q)

  def test_all_items_logged(self):
    support, log_q = draw_support(np.array([1, 0, 2, 1]), num_items=3, size=3)
    np.testing.assert_array_equal(support, [0, 1, 2])
    np.testing.assert_array_equal(log_q, [0.0, 0.0, 0.0])

  def test_every_support_is_as_likely(self):
    # Two of the five items that were not logged: ten supports.
    draws = self.draws(np.array([4, 0]), 7, 4, times=3000)
    _, times = np.unique(draws, axis=0, return_counts=True)
    assert len(times) == 10
    chi_square = np.sum((times - 300) ** 2 / 300)
    assert chi_square < 33.7  # the 0.9999 quantile at 9 degrees of freedom

  def test_draws_anew_at_every_step_and_repeats_with_the_global_seed(self):
    first, second = (self.draws(np.array([0]), 50, 5, times=2) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()

  @pytest.mark.parametrize(("num_items", "size"), [(10, 2), (5, 6)])
  @pytest.mark.parametrize("compiled", [False, True])
  def test_a_size_that_does_not_fit_is_an_error(self, num_items, size, compiled):
    def draw(actions):
      return draw_support(actions, num_items=num_items, size=size)

    function = tf.function(draw) if compiled else draw
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="size"):
      function(tf.constant([1, 2, 3]))[0].numpy()


class TestExpectations:
  """All supports of a tiny catalogue: those that hold the two logged items and two of the rest."""

  @pytest.fixture(scope="class")
  def enumeration(self):
    x = batch(rows=2, items=7, seed=4)
    x["actions"] = np.array([4, 1])
    others = [item for item in range(7) if item not in x["actions"]]
    supports = [np.array(sorted([4, 1, *two])) for two in itertools.combinations(others, 2)]
    log_q = [np.where(np.isin(s, [4, 1]), 0.0, np.log(2 / 5)) for s in supports]
    return x, supports, log_q

  def test_the_denominator_is_unbiased(self, enumeration):
    x, supports, log_qs = enumeration
    denominators = [
      np.exp(restricted(x, support, log_q)["logits"]).sum(axis=1)
      for support, log_q in zip(supports, log_qs, strict=True)
    ]
    expected = np.exp(x["logits"]).sum(axis=1)
    np.testing.assert_allclose(np.mean(denominators, axis=0), expected, rtol=1e-12)

  def test_the_supports_and_log_q_are_those_of_draw_support(self, enumeration):
    x, supports, log_qs = enumeration
    support, log_q = draw_support(x["actions"], num_items=7, size=4)
    (index,) = [i for i, s in enumerate(supports) if np.array_equal(s, support)]
    np.testing.assert_allclose(log_q, log_qs[index], rtol=1e-6)

  def test_probabilities_come_out_too_large_and_cross_entropy_too_small(self, enumeration):
    x, supports, log_qs = enumeration
    x = {**x, "rewards": np.ones(2)}
    parts = [restricted(x, s, q) for s, q in zip(supports, log_qs, strict=True)]
    entropy = np.mean([CrossEntropy(dtype="float64")(**part) for part in parts], axis=0)
    ratio = np.mean([IPS(RAW, dtype="float64").terms(**part).ratio for part in parts], axis=0)
    np.testing.assert_array_less(entropy, CrossEntropy(dtype="float64")(**x))
    np.testing.assert_array_less(IPS(RAW, dtype="float64").terms(**x).ratio, ratio)

  def test_the_bias_is_half_the_squared_relative_error_of_the_denominator(self):
    """And so falls like 1/S: 2,000 items, of which 100 and 400 are drawn."""
    x = batch(rows=1, items=2000, seed=5)
    x["rewards"] = np.ones(1)
    loss = CrossEntropy(dtype="float64")
    full = float(loss(**x)[0])

    def bias_and_prediction(size):
      tf.random.set_seed(0)
      entropy, denominator = [], []
      for _ in range(100):
        support, log_q = draw_support(x["actions"], num_items=2000, size=size, seed=1)
        part = restricted(x, support.numpy(), log_q)
        denominator.append(np.exp(part["logits"]).sum() / np.exp(x["logits"]).sum())
        # The denominator's own error, whose expectation is 0, taken off: less noise.
        entropy.append(float(loss(**part)[0]) - full - (denominator[-1] - 1))
      return np.mean(entropy), -np.var(denominator) / 2

    (few, predicted_few), (many, predicted_many) = map(bias_and_prediction, (100, 400))
    np.testing.assert_allclose([few, many], [predicted_few, predicted_many], rtol=0.15)
    assert 3 < few / many < 7

  def test_the_support_and_the_catalogue_agree_where_all_items_are_alike(self):
    x = batch(rows=3, items=200)
    x["logits"] = np.zeros_like(x["logits"])
    support, log_q = draw_support(x["actions"], num_items=200, size=20)
    value = CrossEntropy(dtype="float64")(**restricted(x, support.numpy(), log_q))
    logged = len(np.unique(x["actions"]))
    # Of N = 200 equal terms, the logged stand for themselves and the others for all others.
    np.testing.assert_allclose(np.exp(-log_q[log_q < 0]), (200 - logged) / (20 - logged), rtol=1e-5)
    np.testing.assert_allclose(value, x["rewards"] * np.log(200), rtol=1e-6)
