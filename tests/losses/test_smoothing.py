"""Weighted log-likelihood, exponential smoothing, logarithmic smoothing."""

import numpy as np
import pytest

from tests import oracle
from tests.losses.helpers import RAW, batch, every_action, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import (
  POEM,
  CrossEntropy,
  ExponentialSmoothing,
  LogarithmicSmoothing,
  WeightedLogLikelihood,
)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_likelihood_with_the_largest_floor_is_cross_entropy(policy):
  x, options = batch(), {"policy": policy, "slate_size": 3, "dtype": "float64"}
  value = WeightedLogLikelihood(1.0, **options)(**x)
  np.testing.assert_allclose(value, CrossEntropy(**options)(**x), rtol=1e-12)


def test_likelihood_is_least_where_the_policy_is_proportional_to_reward():
  rewards, behavior = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
  x = every_action(np.log(rewards) + 2.0, np.zeros(3), behavior, rewards)
  _, gradient = value_and_gradient(WeightedLogLikelihood(0.1, dtype="float64"), x)
  np.testing.assert_allclose(behavior @ gradient, np.zeros(3), atol=1e-12)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
@pytest.mark.parametrize(
  ("kind", "strength", "rtol"),
  [(ExponentialSmoothing, 1.0, 1e-9), (LogarithmicSmoothing, 1e-9, 1e-6)],
)
def test_the_mildest_smoothing_is_the_risk_of_ips(policy, kind, strength, rtol):
  x, options = batch(), {"policy": policy, "slate_size": 3, "dtype": "float64"}
  value, gradient = value_and_gradient(kind(strength, **options), x)
  expected, expected_gradient = value_and_gradient(POEM(RAW, 0.0, **options), x)
  np.testing.assert_allclose(value, expected, rtol=rtol)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=rtol, atol=1e-12)


def test_logarithmic_smoothing_never_exceeds_ips_and_falls_with_its_strength():
  x = batch()
  ips = -POEM(RAW, 0.0, dtype="float64")(**x).numpy()
  gains = [-LogarithmicSmoothing(s, dtype="float64")(**x).numpy() for s in (0.01, 0.1, 1.0)]
  rewarded = x["rewards"] > 0
  for larger, smaller in zip([ips, *gains], gains, strict=False):
    assert (smaller[rewarded] < larger[rewarded]).all()


@pytest.mark.parametrize(
  "kind", [ExponentialSmoothing, LogarithmicSmoothing, WeightedLogLikelihood]
)
def test_reports_the_weights_of_its_gradient(kind):
  x = batch()
  loss = kind(dtype="float64")
  _, gradient = value_and_gradient(loss, x)
  weights = loss.terms(**x).weights.numpy()
  p, rows = oracle.softmax(x["logits"]), np.arange(6)
  expected = -(weights * x["rewards"] * (1 - p[rows, x["actions"]]))
  np.testing.assert_allclose(gradient[rows, x["actions"]], expected, rtol=1e-9)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_exponents_and_floors_outside_the_unit_interval_are_refused(value):
  with pytest.raises(InputError, match=r"ExponentialSmoothing: propensity_exponent must be in"):
    ExponentialSmoothing(value)
  with pytest.raises(InputError, match=r"WeightedLogLikelihood: propensity_floor must be in"):
    WeightedLogLikelihood(value)


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_logarithmic_smoothing_needs_a_positive_strength(value):
  with pytest.raises(InputError, match="log_smoothing must be positive and finite"):
    LogarithmicSmoothing(value)
