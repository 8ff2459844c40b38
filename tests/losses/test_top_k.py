import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import RAW, batch, every_action, value_and_gradient
from tf_twostage.losses import IPS, ImportanceWeights, TopK
from tf_twostage.losses.top_k import top_k_multiplier


def test_is_the_ips_loss_times_the_multiplier():
  # Logits (log 3, 0): p = 3/4 and 1/4, K = 3.
  loss = TopK(RAW, slate_size=3, dtype="float64")
  logits = np.log([[3.0, 1.0], [3.0, 1.0]])
  value = loss(logits, np.array([0, 1]), np.array([0.5, 0.1]), np.array([1.0, 2.0]))
  first = -(0.75 / 0.5) * (3 * (1 - 0.75) ** 2) * 1.0 * np.log(0.75)
  second = -(0.25 / 0.1) * (3 * (1 - 0.25) ** 2) * 2.0 * np.log(0.25)
  np.testing.assert_allclose(value, [first, second], rtol=1e-12)


def test_slates_of_one_are_one_stage_ips():
  x = batch()
  value, gradient = value_and_gradient(TopK(slate_size=1, dtype="float64"), x)
  expected, expected_gradient = value_and_gradient(IPS(dtype="float64"), x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient, expected_gradient)


def test_multiplier_is_the_derivative_of_the_chance_to_be_among_k_draws():
  p, step = np.array([0.01, 0.2, 0.5, 0.9]), 1e-6
  chance = [1 - (1 - q) ** 5 for q in (p + step, p - step)]
  np.testing.assert_allclose(
    top_k_multiplier(tf.constant(np.log(p)), 5), (chance[0] - chance[1]) / (2 * step), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("log_p", "k"),
  [(-1.2345e-7, 2), (-1e-3, 5), (-0.6, 30), (-0.8, 30), (-17.3, 10_000), (-27.6, 10_000)],
)
def test_multiplier_keeps_its_digits_in_float32(log_p, k):
  """p near 1, where 1 - p has lost them, and p near 0, where K - 1 magnifies what is lost."""
  expected = k * np.exp((k - 1) * np.log(-np.expm1(np.float64(np.float32(log_p)))))
  value = top_k_multiplier(tf.constant([log_p], tf.float32), k)
  np.testing.assert_allclose(value, [expected], rtol=3e-6)


def test_multiplier_of_a_sure_item_is_zero_and_of_an_impossible_one_k():
  log_p = tf.constant([0.0, -1e4, -np.inf])
  np.testing.assert_array_equal(top_k_multiplier(log_p, 5), [0.0, 5.0, 5.0])
  np.testing.assert_array_equal(top_k_multiplier(log_p, 1), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("k", [1, 3])
def test_multiplier_carries_no_gradient(k):
  log_p = tf.constant([-1.0, -0.1])
  with tf.GradientTape() as tape:
    tape.watch(log_p)
    value = top_k_multiplier(log_p, k)
  gradient = tape.gradient(value, log_p)
  assert gradient is None or not gradient.numpy().any()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_gradient_is_unbiased_for_the_value_of_k_draws(k):
  """The value of K independent draws, Σ_a r(a) (1 - (1 - p(a))^K): the expectation over the log is
  its gradient."""
  rng = np.random.default_rng(3)
  logits, behavior_logits = rng.normal(size=(2, 5))
  rewards, behavior = rng.uniform(size=5), oracle.softmax(behavior_logits)
  x = every_action(logits, np.zeros(5), behavior, rewards)
  _, gradient = value_and_gradient(TopK(RAW, slate_size=k, dtype="float64"), x)
  expected = oracle.finite_differences(
    lambda z: rewards @ (1 - (1 - oracle.softmax(z)) ** k), logits
  )
  np.testing.assert_allclose(behavior @ gradient, -expected, rtol=1e-6, atol=1e-9)


def test_weights_are_those_of_ips():
  x = batch()
  top_k, ips = (kind(dtype="float64").terms(**x) for kind in (TopK, IPS))
  np.testing.assert_array_equal(top_k.ratio, ips.ratio)
  np.testing.assert_array_equal(top_k.weights, ips.weights)


def test_defaults():
  assert TopK().slate_size == 30
  assert TopK().importance == ImportanceWeights(cap=10.0, floor=0.01, self_normalize=True)
