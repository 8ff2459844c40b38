import numpy as np
import pytest

from tests.losses.helpers import batch, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import BinaryCrossEntropy


@pytest.mark.parametrize(
  ("reward", "expected"),
  [
    (1.0, -np.log(1 / (1 + np.exp(-2.0)))),
    (0.0, -np.log(1 / (1 + np.exp(2.0)))),
    (0.25, -0.25 * np.log(1 / (1 + np.exp(-2.0))) - 0.75 * np.log(1 / (1 + np.exp(2.0)))),
  ],
)
def test_is_the_logistic_loss_of_the_logged_logit(reward, expected):
  loss = BinaryCrossEntropy(dtype="float64")
  value = loss(np.array([[-3.0, 2.0, 7.0]]), np.array([1]), np.array([0.5]), np.array([reward]))
  np.testing.assert_allclose(value, [expected], rtol=1e-12)


def test_a_label_is_the_share_of_the_largest_reward():
  # Rewards of 0, 1.5 and 6 seconds of 6 are labels of 0, 1/4 and 1.
  x = {**batch(rows=3), "rewards": np.array([0.0, 1.5, 6.0])}
  scaled = BinaryCrossEntropy(reward_scale=6.0, dtype="float64")
  expected = BinaryCrossEntropy(dtype="float64")(**{**x, "rewards": np.array([0.0, 0.25, 1.0])})
  np.testing.assert_allclose(scaled(**x), expected, rtol=1e-12)


@pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
def test_is_bounded_below_whatever_the_reward(logit):
  loss = BinaryCrossEntropy(dtype="float64")
  value = loss(np.array([[logit, 0.0]]), np.array([0]), np.array([0.5]), np.array([5.0]))
  np.testing.assert_allclose(value, [np.log1p(np.exp(-logit))], rtol=1e-12)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_no_reward_is_refused(scale):
  with pytest.raises(InputError, match="reward_scale must be positive, got"):
    BinaryCrossEntropy(reward_scale=scale)


@pytest.mark.parametrize("logit", [np.nan, np.inf])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_an_invalid_logit_of_the_logged_item_alone_makes_the_row_nan(logit, reward):
  x = {**batch(rows=2), "actions": np.array([1, 1]), "rewards": np.full(2, reward)}
  x["logits"][0, 1] = x["logits"][1, 2] = logit
  value, gradient = value_and_gradient(BinaryCrossEntropy(dtype="float64"), x)
  np.testing.assert_array_equal(np.isnan(value), [True, False])
  np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), [True, False])


def test_other_items_logits_neither_count_nor_learn():
  x = batch()
  logged = np.eye(x["logits"].shape[1])[x["actions"]]
  shifted = {**x, "logits": x["logits"] + 5.0 * (1 - logged)}
  loss = BinaryCrossEntropy(dtype="float64")
  value, gradient = value_and_gradient(loss, x)
  np.testing.assert_array_equal(loss(**shifted), value)
  np.testing.assert_array_equal(gradient * (1 - logged), np.zeros_like(gradient))


def test_gradient_is_sigmoid_minus_reward_at_the_logged_item():
  x = batch()
  _, gradient = value_and_gradient(BinaryCrossEntropy(dtype="float64"), x)
  rows = np.arange(len(x["actions"]))
  sigmoid = 1 / (1 + np.exp(-x["logits"][rows, x["actions"]]))
  np.testing.assert_allclose(gradient[rows, x["actions"]], sigmoid - x["rewards"], rtol=1e-12)


def test_the_ranker_has_its_part_in_the_label():
  # λ = 1/4, reward 1, sigmoid(g) = 1/3: the label is 3/4 + 1/4 * 1/3 = 5/6.
  loss = BinaryCrossEntropy(distillation=0.25, dtype="float64")
  value = loss(
    np.array([[-3.0, 2.0]]),
    np.array([1]),
    np.array([0.5]),
    np.array([1.0]),
    np.array([[9.0, np.log(1 / 2)]]),
  )
  expected = 5 / 6 * np.log(1 + np.exp(-2.0)) + 1 / 6 * np.log(1 + np.exp(2.0))
  np.testing.assert_allclose(value, [expected], rtol=1e-12)


def test_an_item_always_rewarded_stops_where_the_ranker_says():
  x = batch()
  rows, distillation = np.arange(len(x["actions"])), 0.3
  taught = 1 / (1 + np.exp(-x["ranker_logits"][rows, x["actions"]]))
  label = 1 - distillation + distillation * taught
  logits = x["logits"].copy()
  logits[rows, x["actions"]] = np.log(label / (1 - label))
  loss = BinaryCrossEntropy(distillation=distillation, dtype="float64")
  rewarded = {**x, "logits": logits, "rewards": np.ones_like(x["rewards"])}
  _, gradient = value_and_gradient(loss, rewarded)
  np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-12)


def test_needs_a_ranker_only_to_learn_from_it():
  assert not BinaryCrossEntropy().needs_ranker
  assert BinaryCrossEntropy(distillation=0.1).needs_ranker


@pytest.mark.parametrize("distillation", [-0.1, 1.1, float("nan")])
def test_shares_outside_the_unit_interval_are_refused(distillation):
  with pytest.raises(InputError, match=r"distillation must be in \[0, 1\], got"):
    BinaryCrossEntropy(distillation=distillation)
