import numpy as np

from tests import oracle
from tests.losses.helpers import batch, value_and_gradient
from tf_twostage.losses import CrossEntropy


def columns(**changes):
  """Two items with logits 2 and 0, the first one logged with reward 1."""
  return {
    "logits": np.array([[2.0, 0.0]]),
    "actions": np.array([0]),
    "propensities": np.array([0.5]),
    "rewards": np.array([1.0]),
    **changes,
  }


def test_is_the_negative_log_probability_of_the_logged_item():
  loss = CrossEntropy(dtype="float64")
  expected = -np.log(np.exp(2.0) / (np.exp(2.0) + np.exp(0.0)))
  np.testing.assert_allclose(loss(**columns()), [expected], rtol=1e-12)
  expected = -np.log(np.exp(0.0) / (np.exp(2.0) + np.exp(0.0)))
  np.testing.assert_allclose(loss(**columns(actions=np.array([1]))), [expected], rtol=1e-12)


def test_is_linear_in_the_reward():
  loss = CrossEntropy(dtype="float64")
  one, three, none = (loss(**columns(rewards=np.array([r]))).numpy() for r in (1.0, 3.0, 0.0))
  np.testing.assert_allclose(three, 3 * one)
  np.testing.assert_array_equal(none, [0.0])


def test_does_not_read_propensities():
  loss = CrossEntropy(dtype="float64")
  terms = loss.terms(**columns(propensities=np.array([1e-12])))
  np.testing.assert_array_equal(terms.loss, loss(**columns()))
  assert terms.ratio is None
  assert terms.weights is None
  assert not loss.uses_weights


def test_gradient_is_reward_times_softmax_minus_one_hot():
  x = batch()
  _, gradient = value_and_gradient(CrossEntropy(dtype="float64"), x)
  one_hot = np.eye(x["logits"].shape[1])[x["actions"]]
  expected = x["rewards"][:, None] * (oracle.softmax(x["logits"]) - one_hot)
  np.testing.assert_allclose(gradient, expected, atol=1e-12)
