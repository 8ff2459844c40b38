import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.losses import ImportanceWeights

PROBABILITIES = np.array([0.5, 0.002, 0.9])
PROPENSITIES = np.array([0.25, 0.5, 0.01])  # ratios 2, 0.004, 90: inside, below, above


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


def test_carries_no_gradient():
  log_prob = tf.constant([-1.0, -2.0])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(log_prob)
    ratio, weights = ImportanceWeights()(log_prob, tf.constant([0.2, 0.3]))
  assert tape.gradient(ratio, log_prob) is None
  assert tape.gradient(weights, log_prob) is None


ROWS = st.lists(st.tuples(st.floats(-50.0, 0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=8)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(ROWS)
def test_self_normalised_weights_average_one(rows):
  log_prob, propensities = np.array(rows).T
  weights = ImportanceWeights()(tf.constant(log_prob), tf.constant(propensities))[1].numpy()
  np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-9)


@hypothesis.settings(max_examples=40, deadline=None)
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
