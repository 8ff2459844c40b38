"""Diagnostics over an epoch, against NumPy over all its rows."""

import numpy as np
import tensorflow as tf

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
  health.update(logits, objective.terms(logits, tf.range(4), propensities, tf.ones([4])))
  results = {m.name: float(m.result()) for m in health.metrics}
  np.testing.assert_allclose(results["share_capped"], 2 / 4)
  np.testing.assert_allclose(results["share_floored"], 1 / 4)
  np.testing.assert_allclose(results["weight_max"], 25.0, rtol=1e-5)
  np.testing.assert_allclose(results["weight_mean"], (25 + 2.5 + 0.5 + 0.25) / 4, rtol=1e-5)
  np.testing.assert_allclose(results["policy_entropy"], np.log(4), rtol=1e-5)
