import numpy as np
import pytest
import tensorflow as tf

from tests.losses.helpers import batch, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import BinaryCrossEntropy, CrossEntropy, RegressionRanking

POLICIES = [{}, {"policy": "two_stage", "slate_size": 3}, {"policy": "distinct", "slate_size": 3}]


@pytest.mark.parametrize("policy", POLICIES)
def test_is_the_logistic_loss_and_the_weighted_cross_entropy(policy):
  x = batch(rows=4)
  parts = BinaryCrossEntropy(dtype="float64"), CrossEntropy(dtype="float64", **policy)
  (regression, of_regression), (ranking, of_ranking) = (value_and_gradient(p, x) for p in parts)
  loss = RegressionRanking(0.7, dtype="float64", **policy)
  value, gradient = value_and_gradient(loss, x)
  np.testing.assert_allclose(value, regression + 0.7 * ranking, rtol=1e-12)
  np.testing.assert_allclose(gradient, of_regression + 0.7 * of_ranking, rtol=1e-9, atol=1e-12)


def test_the_ranking_counts_labels():
  x = {**batch(rows=3), "rewards": np.array([0.0, 1.5, 6.0])}
  scaled = RegressionRanking(reward_scale=6.0, dtype="float64")
  expected = RegressionRanking(dtype="float64")(**{**x, "rewards": np.array([0.0, 0.25, 1.0])})
  np.testing.assert_allclose(scaled(**x), expected, rtol=1e-12)


def test_a_row_without_reward_lowers_its_item_alone():
  x = {**batch(rows=2), "rewards": np.zeros(2)}
  _, gradient = value_and_gradient(RegressionRanking(dtype="float64"), x)
  logged = np.eye(x["logits"].shape[1])[x["actions"]].astype(bool)
  assert (gradient[logged] > 0).all()
  assert (gradient[~logged] == 0).all()


@pytest.mark.parametrize("weight", [0.0, -1.0, np.inf, np.nan])
def test_a_weight_that_ranks_nothing_is_refused(weight):
  with pytest.raises(InputError, match="ranking_weight must be positive"):
    RegressionRanking(weight)


def test_factors_give_the_gradient_of_their_product():
  random = np.random.default_rng(0)
  users, items = (tf.constant(random.normal(size=(n, 3)), tf.float32) for n in (4, 5))
  x = {n: v for n, v in batch(rows=4, dtype=np.float32).items() if n != "logits"}
  loss, found = RegressionRanking(), []
  for factors in (None, (users, items)):
    with tf.GradientTape() as tape:
      tape.watch([users, items])
      logits = tf.matmul(users, items, transpose_b=True)
      value = loss.terms(logits, **x, factors=factors).loss
    found.append([value, *tape.gradient(value, [users, items])])
  for plain, factored in zip(*found, strict=True):
    np.testing.assert_allclose(factored, tf.convert_to_tensor(plain), rtol=1e-4, atol=1e-6)
