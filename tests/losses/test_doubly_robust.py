import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import RAW, UNIT, batch, every_action, value_and_gradient
from tests.policy_oracle import enumerate_slates
from tf_twostage.losses import IPS, DoublyRobust, ImportanceWeights
from tf_twostage.losses.importance import CAPPED_WEIGHTS


def tiny_log(seed, predicted):
  """One context of five actions, all logged, with rhat for ranker logits."""
  rng = np.random.default_rng(seed)
  logits, behavior_logits = rng.normal(size=(2, 5))
  return every_action(logits, predicted, oracle.softmax(behavior_logits), rng.uniform(size=5))


def test_is_the_direct_estimate_and_the_correction():
  # p = (3/4, 1/4), rhat = (0.2, 0.6), item 0 logged with β = 1/2 and reward 1: ω = 3/2.
  loss = DoublyRobust(RAW, reward_model="linear", dtype="float64")
  value = loss(
    np.log([[3.0, 1.0]]), np.array([0]), np.array([0.5]), np.array([1.0]), np.array([[0.2, 0.6]])
  )
  direct = 0.75 * 0.2 + 0.25 * 0.6
  np.testing.assert_allclose(value, [-direct - 1.5 * (1.0 - 0.2) * np.log(0.75)], rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_unbiased_whatever_the_reward_model(seed):
  x = tiny_log(seed, np.random.default_rng(seed + 10).normal(size=5))
  loss = DoublyRobust(RAW, reward_model="linear", dtype="float64")
  _, gradient = value_and_gradient(loss, x)
  expected = -oracle.value_gradient(x["logits"][0], x["rewards"])
  np.testing.assert_allclose(x["propensities"] @ gradient, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_unbiased_for_the_value_of_two_stages(seed):
  x = tiny_log(seed, np.random.default_rng(seed + 10).normal(size=5))
  loss = DoublyRobust(RAW, policy="two_stage", slate_size=3, dtype="float64")
  _, gradient = value_and_gradient(loss, x)
  exact = enumerate_slates(x["logits"][0], x["ranker_logits"][0], 3)
  expected = -exact.jacobian.T @ x["rewards"]
  np.testing.assert_allclose(x["propensities"] @ gradient, expected, atol=2e-4)


def test_a_right_reward_model_needs_no_weights():
  """Rows agree on the gradient of the value although no weight is right."""
  x = tiny_log(0, np.zeros(5))
  x["ranker_logits"] = np.tile(x["rewards"], (5, 1))
  loss = DoublyRobust(UNIT, reward_model="linear", dtype="float64")
  _, gradient = value_and_gradient(loss, x)
  expected = -oracle.value_gradient(x["logits"][0], x["rewards"])
  np.testing.assert_allclose(gradient, np.tile(expected, (5, 1)), atol=1e-12)


def test_a_better_reward_model_has_less_variance():
  def variance(error):
    x = tiny_log(0, np.zeros(5))
    x["ranker_logits"] = np.tile(x["rewards"] + error * np.cos(np.arange(5)), (5, 1))
    loss = DoublyRobust(RAW, reward_model="linear", dtype="float64")
    gradient = value_and_gradient(loss, x)[1]
    mean = x["propensities"] @ gradient
    return x["propensities"] @ np.square(gradient - mean).sum(axis=1)

  assert variance(0.0) < 1e-20 < variance(0.1) < variance(0.5) < variance(2.0)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_without_predictions_it_is_ips(policy):
  x = batch()
  options = {"importance": CAPPED_WEIGHTS, "policy": policy, "slate_size": 3, "dtype": "float64"}
  nothing = DoublyRobust(reward_model=tf.zeros_like, **options)
  value, gradient = value_and_gradient(nothing, x)
  expected, expected_gradient = value_and_gradient(IPS(**options), x)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_a_logistic_ranker_is_read_through_its_sigmoid():
  x = batch()
  sigmoid = 1 / (1 + np.exp(-x["ranker_logits"]))
  logistic = DoublyRobust(dtype="float64")(**x)
  linear = DoublyRobust(reward_model="linear", dtype="float64")
  np.testing.assert_allclose(logistic, linear(**{**x, "ranker_logits": sigmoid}), rtol=1e-12)


def test_a_function_is_a_reward_model():
  x = batch()
  halved = DoublyRobust(reward_model=lambda g: g / 2, dtype="float64")(**x)
  linear = DoublyRobust(reward_model="linear", dtype="float64")
  expected = linear(**{**x, "ranker_logits": x["ranker_logits"] / 2})
  np.testing.assert_allclose(halved, expected, rtol=1e-12)


@tf.keras.utils.register_keras_serializable("tests")
def half(ranker_logits):
  return ranker_logits / 2


def test_a_registered_reward_model_survives_its_config():
  loss = DoublyRobust(reward_model=half)
  assert DoublyRobust.from_config(loss.get_config()).reward_model is half


def test_a_reward_model_with_variables_receives_no_gradient():
  scale = tf.Variable(2.0)
  x = batch(dtype=np.float32)
  with tf.GradientTape() as tape:
    value = DoublyRobust(reward_model=lambda g: scale * g)(**x)
  assert tape.gradient(value, scale) is None


def test_predictions_of_a_constant_move_nothing_but_the_value():
  x = batch()
  _, expected = value_and_gradient(IPS(CAPPED_WEIGHTS, baseline=0.7, dtype="float64"), x)
  constant = DoublyRobust(reward_model=lambda g: 0 * g + 0.7, dtype="float64")
  _, gradient = value_and_gradient(constant, x)
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


def expected_gradient(reward_of_label, kept):
  """Expected and true gradient in the logits of three items, which two contexts share.

  The contexts differ in their chances of a reward, which the reward model knows. Only rows with a
  label in `kept` are seen.
  """
  logits, chances = np.array([0.3, -0.2, 0.1]), np.array([[0.9, 0.3, 0.3], [0.1, 0.3, 0.3]])
  behavior = np.array([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]])
  context, action, label = (index.ravel() for index in np.indices((2, 3, 2)))
  keep = np.isin(label, kept)
  context, action, label = context[keep], action[keep], label[keep]
  chance = chances[context, action]
  mass = behavior[context, action] * np.where(label == 1, chance, 1 - chance)
  loss = DoublyRobust(RAW, reward_scale=reward_of_label, dtype="float64")
  x = {
    "logits": np.tile(logits, (len(action), 1)),
    "actions": action,
    "propensities": behavior[context, action],
    "rewards": reward_of_label * label,
    "ranker_logits": np.log(chances / (1 - chances))[context],
  }
  _, gradient = value_and_gradient(loss, x)
  true = -oracle.value_gradient(logits, reward_of_label * chances.mean(axis=0))
  return mass @ gradient / mass.sum(), true


@pytest.mark.parametrize("reward_of_label", [1.0, 30.0])
def test_gradient_of_all_rows_is_unbiased_also_with_rewards_in_seconds(reward_of_label):
  found, true = expected_gradient(reward_of_label, kept=[0, 1])
  np.testing.assert_allclose(found, true, atol=1e-12 * reward_of_label)


def test_gradient_of_rewarded_rows_alone_may_have_the_opposite_direction():
  found, true = expected_gradient(1.0, kept=[1])
  assert found @ true < -0.99 * np.linalg.norm(found) * np.linalg.norm(true)


def test_weights_are_those_of_ips():
  x = batch()
  importance = ImportanceWeights()
  loss, ips = (kind(importance, dtype="float64").terms(**x) for kind in (DoublyRobust, IPS))
  np.testing.assert_array_equal(loss.ratio, ips.ratio)
  np.testing.assert_array_equal(loss.weights, ips.weights)


def test_an_unknown_reward_model_is_refused():
  with pytest.raises(ValueError, match="Unknown activation function"):
    DoublyRobust(reward_model="oracle")


def test_defaults():
  assert DoublyRobust().reward_model is tf.keras.activations.sigmoid
  assert DoublyRobust().importance == CAPPED_WEIGHTS


def test_a_row_with_less_reward_than_predicted_has_a_bounded_pull():
  x = {
    "logits": np.array([[-1e3, 0.0]]),
    "actions": np.array([0]),
    "propensities": np.array([0.5]),
    "rewards": np.array([0.0]),
    "ranker_logits": np.zeros((1, 2)),
  }
  np.testing.assert_allclose(DoublyRobust(dtype="float64")(**x), [-0.5], rtol=1e-12)
  floored = DoublyRobust(ImportanceWeights(self_normalize=False), dtype="float64")(**x)
  np.testing.assert_allclose(floored, [-0.5 - 0.01 * 0.5 * 1e3], rtol=1e-12)
