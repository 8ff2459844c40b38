"""SNIPS and POEM: the losses that learn through their weights."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import (
  RAW,
  SHRUNK,
  UNIT,
  batch,
  clipped_batch,
  every_action,
  value_and_gradient,
)
from tests.policy_oracle import enumerate_slates
from tf_twostage.errors import InputError
from tf_twostage.losses import IPS, POEM, SNIPS, ImportanceWeights
from tf_twostage.losses.crm import poem

CLIP = ImportanceWeights(cap=10.0, floor=0.01, self_normalize=False)


def exact_log(seed=0):
  """A log whose averages are expectations: β is 1/10, 2/10, 3/10, 4/10, and action a is logged as
  often. Also the rewards of the actions, one context's logits and ranker logits."""
  rng = np.random.default_rng(seed)
  rewards, behavior = rng.uniform(size=4), np.array([0.1, 0.2, 0.3, 0.4])
  logits, ranker_logits = rng.normal(size=(2, 4))
  x = every_action(logits, ranker_logits, behavior, rewards)
  times = [1, 2, 3, 4]
  return {k: np.repeat(v, times, axis=0) for k, v in x.items()}, rewards, logits, ranker_logits


# Of the ratio Σ ω r / Σ ω, the batch mean of the denominator is 1 in such a log, whatever π.
@pytest.mark.parametrize("loss", [SNIPS(RAW, dtype="float64"), POEM(RAW, 0.0, dtype="float64")])
def test_mean_and_gradient_are_those_of_the_value(loss):
  x, rewards, logits, _ = exact_log()
  value, gradient = value_and_gradient(loss, x)
  np.testing.assert_allclose(value.mean(), -oracle.softmax(logits) @ rewards, rtol=1e-12)
  expected = -oracle.value_gradient(logits, rewards)
  np.testing.assert_allclose(gradient.mean(axis=0), expected, atol=1e-12)


@pytest.mark.parametrize(("kind", "options"), [(SNIPS, {}), (POEM, {"variance_penalty": 0.0})])
def test_mean_and_gradient_are_those_of_the_value_of_two_stages(kind, options):
  x, rewards, logits, ranker_logits = exact_log()
  loss = kind(RAW, policy="two_stage", slate_size=3, dtype="float64", **options)
  value, gradient = value_and_gradient(loss, x)
  expected = enumerate_slates(logits, ranker_logits, 3)
  np.testing.assert_allclose(value.mean(), -expected.probabilities @ rewards, rtol=1e-3)
  # The quadrature's rows do not sum to 1 exactly, which SNIPS divides by.
  np.testing.assert_allclose(gradient.mean(axis=0), -expected.jacobian.T @ rewards, atol=3e-4)


@pytest.mark.parametrize("importance", [CLIP, dataclasses.replace(SHRUNK, self_normalize=False)])
@pytest.mark.parametrize("kind", [SNIPS, POEM])
def test_batch_mean_is_the_estimate(kind, importance):
  x = clipped_batch()
  options = {"variance_penalty": 0.0} if kind is POEM else {}
  loss = kind(importance, dtype="float64", **options)(**x).numpy().mean()
  ratio = oracle.softmax(x["logits"])[np.arange(5), x["actions"]] / x["propensities"]
  weights = oracle.importance_weights(ratio, **dataclasses.asdict(importance))
  total = weights.sum() if kind is SNIPS else 5
  np.testing.assert_allclose(loss, -(weights @ x["rewards"]) / total, rtol=1e-12)


@pytest.mark.parametrize("loss", [SNIPS(CLIP, dtype="float64"), POEM(CLIP, 0.0, dtype="float64")])
def test_a_clipped_weight_does_not_move_with_its_row(loss):
  x = clipped_batch()
  clipped = np.array([0, 3])
  ratio = loss.terms(**x).ratio.numpy()
  np.testing.assert_array_equal((ratio > 10) | (ratio < 0.01), np.isin(np.arange(5), clipped))
  _, gradient = value_and_gradient(loss, x)
  np.testing.assert_array_equal(gradient[clipped], np.zeros((2, 4)))
  others = np.setdiff1d(np.arange(5), clipped)
  if isinstance(loss, POEM):
    others = others[x["rewards"][others] > 0]
  assert np.abs(gradient[others]).max(axis=1).min() > 1e-3


def test_snips_normalises_whatever_its_importance_says():
  x = batch()
  expected, expected_gradient = value_and_gradient(SNIPS(dtype="float64"), x)
  value, gradient = value_and_gradient(SNIPS(CLIP, dtype="float64"), x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_gradient_of_snips_is_that_of_the_ratio(policy):
  """d(Σωr / Σω) = Σ ω (r - value) d log π / Σω: self-normalised IPS with the value for baseline."""
  x = batch()
  options = {"policy": policy, "slate_size": 3, "dtype": "float64"}
  value, gradient = value_and_gradient(SNIPS(RAW, **options), x)
  ips = IPS(ImportanceWeights(cap=np.inf, floor=0.0), **options)
  x["rewards"] += value.mean()  # minus the value, since the loss is
  np.testing.assert_allclose(gradient, value_and_gradient(ips, x)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_rewarded_rows_alone_teach_snips_nothing(policy):
  x = {**batch(), "rewards": np.ones(6)}
  value, gradient = value_and_gradient(SNIPS(policy=policy, slate_size=3, dtype="float64"), x)
  np.testing.assert_allclose(value.mean(), -1.0, rtol=1e-12)
  np.testing.assert_allclose(gradient, np.zeros((6, 5)), atol=1e-12)


def test_a_baseline_of_normalised_poem_is_refused():
  with pytest.raises(
    InputError, match="POEM: with self-normalised weights a baseline changes noth"
  ):
    POEM(ImportanceWeights(), baseline=-0.5)


def test_poem_needs_all_rows_for_its_penalty_or_its_divisor():
  assert "its variance is that of" in POEM().needs_all_rows
  assert not POEM(variance_penalty=0.0).needs_all_rows
  assert POEM(ImportanceWeights(), 0.0).needs_all_rows == SNIPS().needs_all_rows


@pytest.mark.parametrize("policy", ["softmax", "two_stage"])
def test_poem_without_penalty_has_the_gradient_of_ips_where_nothing_is_clipped(policy):
  x = batch()
  options = {"policy": policy, "slate_size": 3, "dtype": "float64"}
  _, gradient = value_and_gradient(POEM(RAW, 0.0, **options), x)
  _, expected = value_and_gradient(IPS(RAW, **options), x)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_poem_without_penalty_is_the_ips_estimate():
  x = clipped_batch()
  ratio = oracle.softmax(x["logits"])[np.arange(5), x["actions"]] / x["propensities"]
  expected = -np.minimum(ratio, 10.0) * x["rewards"]
  np.testing.assert_allclose(POEM(variance_penalty=0.0, dtype="float64")(**x), expected, rtol=1e-9)


def test_poem_adds_the_penalty_times_the_standard_error_to_every_row():
  # Three gains ω r of 1, 2 and 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7.
  value = poem(
    tf.constant([1.0, 4.0, 3.0], tf.float64), tf.constant([1.0, 0.5, 2.0], tf.float64), penalty=0.5
  )
  np.testing.assert_allclose(value, np.array([-1, -2, -6]) + 0.5 * np.sqrt(7 / 3), rtol=1e-12)


def test_poem_of_normalised_weights_has_the_standard_error_of_a_ratio():
  # ω = 0.5, 1, 1.5 averages 1; r = 2, 0, 4; value 7/3; residuals ω (r - 7/3) = -1/6, -7/3, 5/2.
  value = poem(
    tf.constant([0.5, 1.0, 1.5], tf.float64),
    tf.constant([2.0, 0.0, 4.0], tf.float64),
    penalty=2.0,
    self_normalized=True,
  )
  error = np.sqrt(((1 / 6) ** 2 + (7 / 3) ** 2 + (5 / 2) ** 2) / (3 * 2))
  np.testing.assert_allclose(value, np.array([-1.0, 0.0, -6.0]) + 2 * error, rtol=1e-12)


def test_norm_poem_is_chosen_by_the_importance():
  x = batch()
  value = POEM(ImportanceWeights(floor=0.0), 2.0, dtype="float64")(**x)
  ratio = oracle.softmax(x["logits"])[np.arange(6), x["actions"]] / x["propensities"]
  expected = oracle.normalised_poem(np.minimum(ratio, 10.0), x["rewards"], 2.0)
  np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_norm_poem_without_penalty_is_snips():
  x = batch()
  value, gradient = value_and_gradient(POEM(ImportanceWeights(), 0.0, dtype="float64"), x)
  expected, expected_gradient = value_and_gradient(SNIPS(dtype="float64"), x)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("compiled", [None, True], ids=["graph", "xla"])
def test_equal_gains_bear_no_penalty_and_keep_a_finite_gradient(compiled):
  @functools.partial(tf.function, jit_compile=compiled)
  def value_and_slope(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      value = poem(weights, tf.ones(3), penalty=5.0)
    return value, tape.gradient(value, weights)

  value, slope = value_and_slope(tf.constant([2.0, 2.0, 2.0]))
  np.testing.assert_array_equal(value, [-2.0, -2.0, -2.0])
  np.testing.assert_array_equal(slope, [-1.0, -1.0, -1.0])


def test_one_row_has_no_variance():
  x = batch(rows=1)
  value, gradient = value_and_gradient(POEM(variance_penalty=5.0, dtype="float64"), x)
  expected, expected_gradient = value_and_gradient(POEM(variance_penalty=0.0, dtype="float64"), x)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient, expected_gradient)


def test_a_larger_penalty_prefers_less_spread():
  """At λ = 0 the gradient raises all gains; the penalty holds back those above the mean."""
  rewards = tf.ones(3)
  slopes = []
  for penalty in (0.0, 1.0, 4.0):
    weights = tf.constant([1.0, 1.0, 4.0])
    with tf.GradientTape() as tape:
      tape.watch(weights)
      value = poem(weights, rewards, penalty=penalty)
    slopes.append(tape.gradient(value, weights).numpy()[2])
  assert slopes == sorted(slopes)
  assert slopes[0] == -1.0
  assert slopes[2] > 0


def test_published_settings_are_clipped_from_above_alone():
  assert POEM().importance == ImportanceWeights(cap=10.0, floor=0.0, self_normalize=False)
  assert POEM().variance_penalty == 1.0
  assert SNIPS().importance == ImportanceWeights()


@pytest.mark.parametrize("kind", [SNIPS, POEM])
def test_constant_weights_are_refused(kind):
  with pytest.raises(InputError, match=f"{kind.__name__} learns through its .* use clip or shrink"):
    kind(UNIT)


@pytest.mark.parametrize("penalty", [-0.1, np.inf, np.nan])
def test_refuses_a_penalty_that_makes_no_sense(penalty):
  with pytest.raises(InputError, match=f"variance_penalty must be .*{penalty}"):
    POEM(variance_penalty=penalty)
