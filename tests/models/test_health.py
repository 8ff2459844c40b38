"""Diagnostics over an epoch, against NumPy over all its rows."""

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tf_twostage import losses
from tf_twostage.losses import IPS, ImportanceWeights
from tf_twostage.models.health import EffectiveSampleShare, Maximum, PolicyHealth


def test_effective_sample_share_spans_batches():
  weights = np.random.default_rng(0).gamma(1.0, size=40).astype(np.float32)
  metric = EffectiveSampleShare("ess")
  for batch in np.split(weights, 4):
    metric.update_state(batch)
  np.testing.assert_allclose(
    metric.result(), weights.sum() ** 2 / (40 * np.sum(weights**2)), rtol=1e-5
  )


def test_equal_weights_are_worth_all_rows():
  metric = EffectiveSampleShare("ess")
  metric.update_state(tf.fill([7], 3.0))
  np.testing.assert_allclose(metric.result(), 1.0)


def test_maximum_spans_batches_and_resets():
  metric = Maximum("max")
  metric.update_state([1.0, 5.0])
  metric.update_state([2.0])
  assert float(metric.result()) == 5.0
  metric.reset_state()
  metric.update_state([2.0])
  assert float(metric.result()) == 2.0


def test_clipped_shares_count_rows_at_the_bounds():
  # p = 1/4 for every item, so the ratios are 1/(4 beta) = 25, 2.5, 0.5, 0.25
  propensities = tf.constant([0.01, 0.1, 0.5, 1.0])
  objective = IPS(ImportanceWeights(cap=2.0, floor=0.3))
  logits = tf.zeros([4, 4])
  health = PolicyHealth(objective)
  terms = objective.terms(logits, tf.range(4), propensities, tf.ones([4]))
  health.update(terms, health.policy_entropy(logits))
  results = {m.name: float(m.result()) for m in health.metrics}
  np.testing.assert_allclose(results["share_capped"], 2 / 4)
  np.testing.assert_allclose(results["share_floored"], 1 / 4)
  np.testing.assert_allclose(results["weight_max"], 25.0, rtol=1e-5)
  np.testing.assert_allclose(results["weight_mean"], (25 + 2.5 + 0.5 + 0.25) / 4, rtol=1e-5)
  np.testing.assert_allclose(results["policy_entropy"], np.log(4), rtol=1e-5)


@pytest.mark.parametrize("sampled", [False, True])
def test_entropy_on_distinct_candidates_is_that_of_one_of_them(sampled):
  """One large logit is no collapse: K - 1 other candidates remain."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 5))
  logits[:, 2] = 50.0
  copies = np.array([1, 1, 1, 3, 4] if sampled else [1] * 5)
  expected = []
  for row in logits:
    p = oracle.inclusion(np.repeat(row, copies), 3) / 3
    expected.append(-np.sum(p * np.log(p)))
  health = PolicyHealth(IPS(policy="distinct", slate_size=3))
  log_q = -np.log(copies).astype(np.float32) if sampled else None
  entropy = health.policy_entropy(tf.constant(logits, tf.float32), log_q).numpy()
  np.testing.assert_allclose(entropy, expected, rtol=1e-4)
  assert (entropy >= np.log(3)).all()


def results(objective, **inputs):
  health = PolicyHealth(objective)
  logits = tf.zeros([4, 4])
  terms = objective.terms(
    logits, tf.range(4), tf.constant([0.01, 0.1, 0.5, 1.0]), tf.ones([4]), **inputs
  )
  health.update(terms, health.policy_entropy(logits))
  return {m.name: float(m.result()) for m in health.metrics}, terms


@pytest.mark.parametrize("method", ["shrink", "none"])
def test_shares_of_clipped_rows_are_told_only_where_weights_are_clipped(method):
  values, terms = results(IPS(ImportanceWeights(method=method)))
  assert not {"share_capped", "share_floored"} & set(values)
  np.testing.assert_allclose(values["weight_max"], 25.0, rtol=1e-5)  # of the raw ratios
  weights = terms.weights.numpy()
  expected = weights.sum() ** 2 / (4 * np.sum(weights**2))
  np.testing.assert_allclose(values["effective_sample_share"], expected, rtol=1e-5)
  if method == "none":
    np.testing.assert_allclose(expected, 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["ips", "snips", "poem", "doubly_robust"])
@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_the_rankers_share_is_told_of_two_stage_policies(name, policy):
  objective = losses.get(name, policy=policy, slate_size=3)
  values, terms = results(objective, ranker_logits=tf.zeros([4, 4]))
  assert ("ranker_probability" in values) == (policy == "two_stage")
  if policy == "two_stage":
    np.testing.assert_allclose(
      values["ranker_probability"], tf.reduce_mean(terms.ranker_probability)
    )
    # An indifferent ranker gives each of three draws a third, within the quadrature's error.
    np.testing.assert_allclose(values["ranker_probability"], 1 / 3, rtol=6e-4)


def test_an_objective_without_weights_has_entropy_and_loss_alone():
  values, _ = results(losses.get("cross_entropy"))
  assert set(values) == {"mean_loss", "policy_entropy"}
  np.testing.assert_allclose(values["mean_loss"], np.log(4), rtol=1e-5)
