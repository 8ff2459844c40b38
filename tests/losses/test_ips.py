import math

import numpy as np
import pytest

from tests import oracle
from tests.losses.helpers import RAW, UNIT, batch, clipped_batch, every_action, value_and_gradient
from tests.policy_oracle import enumerate_slates
from tf_twostage.losses import IPS, CrossEntropy, ImportanceWeights
from tf_twostage.policies import TwoStagePolicy


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
  assert terms.ranker_probability is None


def test_ratio_on_the_two_stage_policy_is_that_of_the_policy():
  x = batch()
  terms = IPS(policy="two_stage", slate_size=4, dtype="float64").terms(**x)
  policy = TwoStagePolicy(x["logits"], x["ranker_logits"], 4)
  pi = np.exp(policy.log_prob(x["actions"]))
  np.testing.assert_allclose(terms.ratio, pi / x["propensities"], rtol=1e-9)
  np.testing.assert_allclose(
    terms.ranker_probability, policy.ranker_probability(x["actions"]), rtol=1e-9
  )


def tiny_log(seed):
  """One context of five actions, all logged; the rewards of the actions; the value's gradient
  under the generator and under two stages with slates of 3."""
  rng = np.random.default_rng(seed)
  logits, ranker_logits, behavior_logits = rng.normal(size=(3, 5))
  rewards, behavior = rng.uniform(size=5), oracle.softmax(behavior_logits)
  x = every_action(logits, 2 * ranker_logits, behavior, rewards)
  two_stage = enumerate_slates(logits, 2 * ranker_logits, 3).jacobian.T @ rewards
  return x, oracle.value_gradient(logits, rewards), two_stage


def test_gradient_is_unbiased_for_the_value():
  x, expected, _ = tiny_log(3)
  _, gradient = value_and_gradient(IPS(RAW, dtype="float64"), x)
  np.testing.assert_allclose(x["propensities"] @ gradient, -expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_gradient_is_unbiased_for_the_value_of_two_stages(seed):
  x, _, expected = tiny_log(seed)
  loss = IPS(RAW, policy="two_stage", slate_size=3, dtype="float64")
  _, gradient = value_and_gradient(loss, x)
  np.testing.assert_allclose(x["propensities"] @ gradient, -expected, atol=2e-4)


def test_uncorrected_weights_are_biased():
  x, expected, _ = tiny_log(3)
  _, gradient = value_and_gradient(IPS(UNIT, dtype="float64"), x)
  assert np.abs(x["propensities"] @ gradient + expected).max() > 0.01


def test_is_cross_entropy_where_target_equals_behavior():
  x = batch()
  x["propensities"] = oracle.softmax(x["logits"])[np.arange(6), x["actions"]]
  np.testing.assert_allclose(
    IPS(dtype="float64")(**x), CrossEntropy(dtype="float64")(**x), rtol=1e-12
  )


def test_weights_are_one_where_two_stages_logged():
  x = batch()
  policy = TwoStagePolicy(x["logits"], x["ranker_logits"], 4)
  x["propensities"] = np.exp(policy.log_prob(x["actions"]))
  terms = IPS(policy="two_stage", slate_size=4, dtype="float64").terms(**x)
  np.testing.assert_allclose(terms.weights, np.ones(6), rtol=1e-9)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_weights_by_none_make_it_cross_entropy(policy):
  x = batch()
  options = {"policy": policy, "slate_size": 3, "dtype": "float64"}
  np.testing.assert_allclose(IPS(UNIT, **options)(**x), CrossEntropy(**options)(**x), rtol=1e-12)


def test_clipped_rows_go_on_learning():
  x = clipped_batch()
  clip = ImportanceWeights(cap=10.0, floor=0.01, self_normalize=False)
  terms = IPS(clip, dtype="float64").terms(**x)
  assert terms.ratio[0] > 10 == terms.weights[0]
  assert terms.ratio[3] < 0.01 == terms.weights[3]
  _, gradient = value_and_gradient(IPS(clip, dtype="float64"), x)
  p = oracle.softmax(x["logits"])
  for row, weight in ((0, 10.0), (3, 0.01)):
    one_hot = np.eye(4)[x["actions"][row]]
    expected = weight * x["rewards"][row] * (p[row] - one_hot)
    np.testing.assert_allclose(gradient[row], expected, rtol=1e-9)
