import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tf_twostage.errors import InputError
from tf_twostage.losses import ImportanceWeights
from tf_twostage.losses.importance import METHODS

PROBABILITIES = np.array([0.5, 0.002, 0.9])
PROPENSITIES = np.array([0.25, 0.5, 0.01])  # ratios 2, 0.004, 90: inside, below, above


every_method = pytest.mark.parametrize("method", METHODS)


def weigh(weights=None, probabilities=PROBABILITIES, propensities=PROPENSITIES):
  weights = weights or ImportanceWeights()
  ratio, used = weights(tf.constant(np.log(probabilities)), tf.constant(propensities))
  return ratio.numpy(), used.numpy()


def test_ratio_is_target_over_behavior_before_clipping():
  np.testing.assert_allclose(weigh()[0], [0.5 / 0.25, 0.002 / 0.5, 0.9 / 0.01], rtol=1e-12)


def test_weights_are_clipped_at_both_ends():
  _, weights = weigh(ImportanceWeights(cap=10.0, floor=0.01, self_normalize=False))
  np.testing.assert_allclose(weights, [2.0, 0.01, 10.0], rtol=1e-12)


def test_clipping_comes_before_normalising():
  _, weights = weigh(ImportanceWeights(cap=10.0, floor=0.01, self_normalize=True))
  clipped = np.array([2.0, 0.01, 10.0])
  np.testing.assert_allclose(weights, clipped / clipped.mean(), rtol=1e-12)
  ratio = np.array([2.0, 0.004, 90.0])
  normalised_first = np.clip(ratio / ratio.mean(), 0.01, 10.0)
  assert np.abs(weights - normalised_first).max() > 0.1


def test_defaults_are_the_published_settings():
  assert dataclasses.asdict(ImportanceWeights()) == {
    "cap": 10.0,
    "floor": 0.01,
    "self_normalize": True,
    "method": "clip",
    "shrinkage": 100.0,
  }


def test_no_cap_and_no_floor_leave_the_ratio():
  ratio, weights = weigh(ImportanceWeights(cap=math.inf, floor=0.0, self_normalize=False))
  np.testing.assert_array_equal(weights, ratio)


def test_target_equal_to_behavior_gives_weights_one():
  ratio, weights = weigh(probabilities=PROPENSITIES)
  np.testing.assert_allclose(ratio, np.ones(3), rtol=1e-12)
  np.testing.assert_allclose(weights, np.ones(3), rtol=1e-12)


@pytest.mark.parametrize("propensity", [1e-12, 1e-38, 1e-45, 0.0])
def test_ratio_never_overflows_float32(propensity):
  log_prob = tf.constant([0.0, -2e4], tf.float32)
  ratio, weights = ImportanceWeights(cap=math.inf)(log_prob, tf.fill([2], np.float32(propensity)))
  assert np.isfinite(ratio).all()
  assert np.isfinite(weights).all()


def test_ratio_is_right_at_the_smallest_propensities_of_practice():
  ratio, _ = ImportanceWeights()(tf.constant([math.log(0.5)]), tf.constant([1e-12]))
  np.testing.assert_allclose(ratio, [0.5 / 1e-12], rtol=1e-5)


def test_all_weights_zero_stay_zero():
  weights = ImportanceWeights(floor=0.0)(tf.constant([-2e4, -2e4]), tf.constant([0.5, 0.5]))[1]
  np.testing.assert_array_equal(weights, [0.0, 0.0])


@every_method
def test_carries_no_gradient(method):
  log_prob = tf.constant([-1.0, -2.0])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(log_prob)
    ratio, weights = ImportanceWeights(method=method)(log_prob, tf.constant([0.2, 0.3]))
  assert tape.gradient(ratio, log_prob) is None
  assert tape.gradient(weights, log_prob) is None


@every_method
def test_the_ratio_carries_no_gradient_even_if_weights_do(method):
  log_prob = tf.constant([-1.0, -2.0])
  with tf.GradientTape() as tape:
    tape.watch(log_prob)
    ratio, _ = ImportanceWeights(method=method)(
      log_prob, tf.constant([0.2, 0.3]), differentiable=True
    )
  assert tape.gradient(ratio, log_prob) is None


@every_method
@pytest.mark.parametrize("self_normalize", [False, True])
def test_differentiable_weights_are_the_same(method, self_normalize):
  make = ImportanceWeights(method=method, self_normalize=self_normalize)
  arguments = tf.constant(np.log(PROBABILITIES)), tf.constant(PROPENSITIES)
  for held, free in zip(make(*arguments), make(*arguments, differentiable=True), strict=True):
    np.testing.assert_array_equal(free, held)


@pytest.mark.parametrize("method", ["clip", "shrink"])
@pytest.mark.parametrize("self_normalize", [False, True])
def test_derivatives_of_weights_agree_with_finite_differences(method, self_normalize):
  """A combination of the weights, whose divisor is differentiated, too; two rows are clipped."""
  make = ImportanceWeights(method=method, shrinkage=3.0, self_normalize=self_normalize)
  ratio = np.array([2.0, 0.004, 90.0, 0.7])
  combination = np.array([1.0, -2.0, 0.5, 3.0])
  log_prob = tf.constant(np.log(0.01 * ratio))
  with tf.GradientTape() as tape:
    tape.watch(log_prob)
    _, weights = make(log_prob, tf.fill([4], np.float64(0.01)), differentiable=True)
    value = tf.reduce_sum(combination * weights)
  expected = oracle.finite_differences(
    lambda z: combination @ oracle.importance_weights(np.exp(z), **dataclasses.asdict(make)),
    np.log(ratio),
  )
  np.testing.assert_allclose(tape.gradient(value, log_prob), expected, rtol=1e-6, atol=1e-8)


def test_derivative_of_a_weight_is_the_weight_inside_the_clip_and_zero_outside():
  log_prob = tf.constant(np.log(PROBABILITIES))
  with tf.GradientTape() as tape:
    tape.watch(log_prob)
    _, weights = ImportanceWeights(self_normalize=False)(
      log_prob, tf.constant(PROPENSITIES), differentiable=True
    )
  np.testing.assert_allclose(tape.gradient(weights, log_prob), [2.0, 0.0, 0.0], rtol=1e-12)


class TestShrink:
  def test_formula(self):
    _, weights = weigh(ImportanceWeights(method="shrink", shrinkage=9.0, self_normalize=False))
    ratio = np.array([2.0, 0.004, 90.0])
    np.testing.assert_allclose(weights, 9 * ratio / (ratio**2 + 9), rtol=1e-12)

  def test_small_weights_stay_and_the_largest_is_half_the_root(self):
    make = ImportanceWeights(method="shrink", shrinkage=100.0, self_normalize=False)
    ratio = np.array([0.01, 9.0, 10.0, 11.0, 1e6])
    weights = make(tf.constant(np.log(1e-9 * ratio)), tf.fill([5], np.float64(1e-9)))[1].numpy()
    np.testing.assert_allclose(weights[0], 0.01, rtol=1e-5)
    np.testing.assert_allclose(weights[2], 5.0, rtol=1e-9)
    assert weights.argmax() == 2
    np.testing.assert_allclose(weights[-1], 100 / 1e6, rtol=1e-6)

  def test_cap_and_floor_are_not_read(self):
    _, weights = weigh(ImportanceWeights(method="shrink"))
    _, other = weigh(ImportanceWeights(method="shrink", cap=1.0, floor=0.9))
    np.testing.assert_array_equal(weights, other)

  @pytest.mark.parametrize("propensity", [1e-12, 1e-38])
  def test_no_square_overflows_float32(self, propensity):
    log_prob = tf.constant([0.0, -2e4, -np.inf])
    make = ImportanceWeights(method="shrink", self_normalize=False)
    ratio, weights = make(log_prob, tf.fill([3], np.float32(propensity)))
    expected = 100 / ratio.numpy()[0].astype(np.float64)
    np.testing.assert_allclose(weights, [expected, 0.0, 0.0], rtol=1e-4)


class TestNone:
  def test_all_weights_are_one(self):
    for self_normalize in (False, True):
      ratio, weights = weigh(ImportanceWeights(method="none", self_normalize=self_normalize))
      np.testing.assert_array_equal(weights, np.ones(3))
    np.testing.assert_allclose(ratio, [2.0, 0.004, 90.0], rtol=1e-12)


def test_shrinkage_is_not_read_by_clip():
  np.testing.assert_array_equal(
    weigh(ImportanceWeights(shrinkage=1e-3))[1], weigh(ImportanceWeights())[1]
  )


def test_shares_take_part_in_the_divisor_alone():
  arguments = tf.constant(np.log(PROBABILITIES)), tf.constant(PROPENSITIES)
  shares = np.array([0.5, 0.1, 0.25])
  ratio, weights = ImportanceWeights()(*arguments, shares=tf.constant(shares))
  clipped = np.array([2.0, 0.01, 10.0])
  np.testing.assert_allclose(weights, clipped / np.mean(clipped * shares), rtol=1e-12)
  np.testing.assert_allclose(ratio, [2.0, 0.004, 90.0], rtol=1e-12)
  raw = ImportanceWeights(self_normalize=False)(*arguments, shares=tf.constant(shares))[1]
  np.testing.assert_allclose(raw, clipped, rtol=1e-12)


ROWS = st.lists(st.tuples(st.floats(-50.0, 0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=8)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(ROWS)
def test_self_normalised_weights_average_one(rows):
  log_prob, propensities = np.array(rows).T
  weights = ImportanceWeights()(tf.constant(log_prob), tf.constant(propensities))[1].numpy()
  np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-9)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(ROWS)
def test_weights_lie_between_floor_and_cap(rows):
  log_prob, propensities = np.array(rows).T
  make = ImportanceWeights(cap=3.0, floor=0.5, self_normalize=False)
  ratio, weights = (t.numpy() for t in make(tf.constant(log_prob), tf.constant(propensities)))
  np.testing.assert_array_equal(weights, np.clip(ratio, 0.5, 3.0))


@pytest.mark.parametrize(
  ("cap", "floor"), [(1.0, 2.0), (0.0, 0.0), (10.0, -0.1), (math.nan, 0.0), (1.0, math.nan)]
)
def test_refuses_bounds_that_make_no_sense(cap, floor):
  with pytest.raises(InputError, match="floor <= cap"):
    ImportanceWeights(cap=cap, floor=floor)


def test_refuses_an_unknown_method():
  with pytest.raises(InputError, match="method must be one of clip, shrink, none, got 'cut'"):
    ImportanceWeights(method="cut")


@pytest.mark.parametrize("shrinkage", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_shrinkage_that_makes_no_sense(shrinkage):
  with pytest.raises(InputError, match=f"shrinkage must be positive and finite, got {shrinkage}"):
    ImportanceWeights(method="shrink", shrinkage=shrinkage)
