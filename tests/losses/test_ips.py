import math

import numpy as np

from tests import oracle
from tests.losses.helpers import batch, value_and_gradient
from tf_twostage.losses import IPS, CrossEntropy, ImportanceWeights

RAW = ImportanceWeights(cap=math.inf, floor=0.0, self_normalize=False)


def test_is_weight_times_reward_times_negative_log_probability():
  # Two rows of logits (log 3, 0): p = (3/4, 1/4).
  loss = IPS(ImportanceWeights(cap=10.0, floor=0.01, self_normalize=False), dtype="float64")
  logits = np.log([[3.0, 1.0], [3.0, 1.0]])
  value = loss(logits, np.array([0, 1]), np.array([0.5, 0.01]), np.array([1.0, 2.0]))
  first = -(0.75 / 0.5) * 1.0 * math.log(0.75)
  second = -10.0 * 2.0 * math.log(0.25)  # 0.25 / 0.01 is above the cap
  np.testing.assert_allclose(value, [first, second], rtol=1e-12)


def test_reports_what_the_loss_was_made_of():
  x = batch()
  terms = IPS(dtype="float64").terms(**x)
  log_p = oracle.log_softmax(x["logits"])[np.arange(6), x["actions"]]
  ratio = np.exp(log_p) / x["propensities"]
  weights = np.clip(ratio, 0.01, 10) / np.clip(ratio, 0.01, 10).mean()
  np.testing.assert_allclose(terms.ratio, ratio, rtol=1e-12)
  np.testing.assert_allclose(terms.weights, weights, rtol=1e-12)
  np.testing.assert_allclose(terms.loss, -weights * x["rewards"] * log_p, rtol=1e-12)
  assert terms.ranker_share is None


def test_gradient_is_unbiased_for_the_value():
  # One context; every action is a row, so that weighting rows with β takes the expectation.
  rng = np.random.default_rng(3)
  items = 5
  logits, rewards = rng.normal(size=items), rng.uniform(size=items)
  behavior = oracle.softmax(rng.normal(size=items))
  every_action = {
    "logits": np.tile(logits, (items, 1)),
    "actions": np.arange(items),
    "propensities": behavior,
    "rewards": rewards,
  }
  _, gradient = value_and_gradient(IPS(RAW, dtype="float64"), every_action)
  np.testing.assert_allclose(
    behavior @ gradient, -oracle.value_gradient(logits, rewards), atol=1e-12
  )


def test_is_cross_entropy_where_target_equals_behavior():
  x = batch()
  x["propensities"] = oracle.softmax(x["logits"])[np.arange(6), x["actions"]]
  np.testing.assert_allclose(
    IPS(dtype="float64")(**x), CrossEntropy(dtype="float64")(**x), rtol=1e-12
  )
