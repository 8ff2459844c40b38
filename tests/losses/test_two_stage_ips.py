import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import batch, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import IPS, ImportanceWeights, TwoStageIPS
from tf_twostage.losses.slates import sample_slates, slate_counts

UNIT = ImportanceWeights(cap=1.0, floor=1.0)  # every weight is 1


def counts(slates, actions, ranker_logits, alpha):
  result = slate_counts(
    tf.constant(slates, tf.int32), tf.constant(actions), tf.constant(ranker_logits), alpha=alpha
  )
  return [t.numpy() for t in result]


class TestSlateCounts:
  def test_formula(self):
    # One row, slates {0, 2} and {0, 1, 2} around item 0; exp(g) = 1, 2, 3.
    ranker_logits = np.log([[1.0, 2.0, 3.0]])
    weights, share = counts([[[2, 2], [1, 2]]], [0], ranker_logits, alpha=0.5)
    q1, q2 = 1 / (1 + 3), 1 / (1 + 2 + 3)
    np.testing.assert_allclose(share, [(q1 + q2) / 2], rtol=1e-12)
    expected = [[(q1 + q2) / 2, 0.5 * q2 / 2, 0.5 * (q1 + q2) / 2]]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)

  def test_drawing_the_logged_item_changes_nothing(self):
    ranker_logits = np.log([[1.0, 2.0, 3.0]])
    drawn = counts([[[0, 2, 0]]], [0], ranker_logits, alpha=0.5)
    once = counts([[[2]]], [0], ranker_logits, alpha=0.5)
    np.testing.assert_allclose(drawn[0], once[0], rtol=1e-12)
    np.testing.assert_allclose(drawn[1], once[1], rtol=1e-12)

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    rows=st.integers(1, 3),
    num_slates=st.integers(1, 4),
    others=st.integers(0, 6),
    items=st.integers(1, 5),
    alpha=st.floats(0.0, 2.0),
    seed=st.integers(0, 1000),
  )
  def test_equals_one_slate_at_a_time(self, rows, num_slates, others, items, alpha, seed):
    rng = np.random.default_rng(seed)
    slates = rng.integers(items, size=(rows, num_slates, others))
    actions = rng.integers(items, size=rows)
    ranker_logits = rng.normal(size=(rows, items))
    weights, share = counts(slates, actions, ranker_logits, alpha)
    for i in range(rows):
      expected = np.mean(
        [oracle.slate_coefficients(s, actions[i], ranker_logits[i], alpha) for s in slates[i]],
        axis=0,
      )
      np.testing.assert_allclose(weights[i], expected, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(share[i], expected[actions[i]], rtol=1e-9)

  @pytest.mark.parametrize(("margin", "q"), [(1e4, 0.0), (-1e4, 1.0)])
  def test_extreme_ranker_logits_saturate(self, margin, q):
    ranker_logits = np.array([[0.0, margin, margin]], np.float32)
    weights, share = counts([[[1, 2, 2]]], [0], ranker_logits, alpha=1.0)
    np.testing.assert_allclose(share, [q], atol=1e-30)
    np.testing.assert_allclose(weights, [[q, q, q]], atol=1e-30)


class TestSampleSlates:
  def test_shape_leaves_a_place_for_the_logged_item(self):
    slates = sample_slates(tf.zeros([2, 7]), num_slates=3, slate_size=5)
    assert slates.shape == (2, 3, 4)

  @pytest.mark.parametrize("temperature", [1.0, math.e])
  def test_frequencies_follow_the_tempered_softmax(self, temperature):
    logits = np.array([0.0, 1.0, -1.0, 2.0])
    n = 40_000
    tf.random.set_seed(0)
    slates = sample_slates(
      tf.constant(logits[None]), num_slates=n // 4, slate_size=5, temperature=temperature, seed=1
    )
    frequencies = np.bincount(slates.numpy().ravel(), minlength=4) / n
    p = oracle.softmax(logits / temperature)
    assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / n)).all()

  def test_rows_follow_their_own_logits(self):
    slates = sample_slates(1e4 * tf.eye(3), num_slates=4, slate_size=6, temperature=math.e)
    np.testing.assert_array_equal(slates, np.tile(np.arange(3)[:, None, None], (1, 4, 5)))


class TestExpectationOverSlates:
  """The gradient of many rows alike against the enumeration of all slates."""

  K, ALPHA, TEMPERATURE, ROWS = 4, 0.7, math.e, 4000
  LOGITS = np.array([0.5, 2.0, -1.0, 1.0])
  RANKER_LOGITS = np.array([0.0, 1.0, 2.0, -1.0])
  ACTION = 1

  @pytest.fixture(scope="class")
  def gradients(self):
    """Per row [ROWS, N]: independent estimates of the same expectation."""
    loss = TwoStageIPS(
      UNIT,
      alpha=self.ALPHA,
      num_slates=20,
      slate_size=self.K,
      sampling_temperature=self.TEMPERATURE,
      seed=5,
      dtype="float64",
    )
    tf.random.set_seed(0)
    rows = {
      "logits": np.tile(self.LOGITS, (self.ROWS, 1)),
      "actions": np.full(self.ROWS, self.ACTION),
      "propensities": np.full(self.ROWS, 0.5),
      "rewards": np.ones(self.ROWS),
      "ranker_logits": np.tile(self.RANKER_LOGITS, (self.ROWS, 1)),
    }
    return value_and_gradient(loss, rows)[1]

  def expected(self, temperature=TEMPERATURE, slate_size=K, coefficients=None):
    c = oracle.expected_slate_coefficients(
      oracle.softmax(self.LOGITS / temperature),
      self.ACTION,
      self.RANKER_LOGITS,
      self.ALPHA,
      slate_size,
      coefficients or oracle.slate_coefficients,
    )
    return -oracle.log_prob_gradient(c, self.LOGITS)

  def standard_errors_away(self, gradients, expected):
    error = gradients.std(axis=0, ddof=1) / math.sqrt(len(gradients))
    return np.abs(gradients.mean(axis=0) - expected) / error

  def test_is_algorithm_1(self, gradients):
    assert self.standard_errors_away(gradients, self.expected()).max() < 4

  @pytest.mark.parametrize("reading", ["temperature 1", "K drawn", "with multiplicity"])
  def test_tells_other_readings_apart(self, gradients, reading):
    def with_multiplicity(draws, action, ranker_logits, alpha):
      q = oracle.softmax(ranker_logits[[action, *draws]])[0]
      coefficients = alpha * q * np.bincount(draws, minlength=len(ranker_logits))
      coefficients[action] += q
      return coefficients

    other = {
      "temperature 1": self.expected(temperature=1.0),
      "K drawn": self.expected(slate_size=self.K + 1),
      "with multiplicity": self.expected(coefficients=with_multiplicity),
    }[reading]
    assert self.standard_errors_away(gradients, other).max() > 12


def test_loss_is_the_weighted_sum_over_the_slates_drawn():
  x = batch(rows=4, items=6)
  options = {"num_slates": 7, "slate_size": 4}
  loss = TwoStageIPS(alpha=0.3, sampling_temperature=2.0, seed=9, dtype="float64", **options)
  tf.random.set_seed(2)
  terms = loss.terms(**x)
  tf.random.set_seed(2)
  slates = sample_slates(tf.constant(x["logits"]), temperature=2.0, seed=9, **options).numpy()

  log_p = oracle.log_softmax(x["logits"])
  clipped = np.clip(np.exp(log_p[np.arange(4), x["actions"]]) / x["propensities"], 0.01, 10)
  weights = clipped / clipped.mean()
  for i, action in enumerate(x["actions"]):
    c = [oracle.slate_coefficients(s, action, x["ranker_logits"][i], 0.3) for s in slates[i]]
    expected = -x["rewards"][i] * weights[i] * np.mean(c, axis=0) @ log_p[i]
    np.testing.assert_allclose(terms.loss[i], expected, rtol=1e-9)
    np.testing.assert_allclose(terms.ranker_share[i], np.mean(c, axis=0)[action], rtol=1e-9)
  np.testing.assert_allclose(terms.weights, weights, rtol=1e-9)


def test_defaults_are_the_published_settings():
  loss = TwoStageIPS()
  assert loss.importance == ImportanceWeights(cap=10.0, floor=0.01, self_normalize=True)
  assert (loss.alpha, loss.num_slates, loss.slate_size) == (1e-2, 100, 30)
  assert loss.sampling_temperature == math.e


def test_without_alpha_is_one_stage_ips_times_the_ranker_share():
  x = batch()
  terms = TwoStageIPS(alpha=0.0, num_slates=5, slate_size=3, dtype="float64").terms(**x)
  one_stage = IPS(dtype="float64")(**x)
  np.testing.assert_allclose(terms.loss, terms.ranker_share * one_stage, rtol=1e-12)
  assert (terms.ranker_share.numpy() < 1).all()


def test_a_constant_ranker_gives_the_logged_item_one_place_among_the_distinct():
  # A generator sure of item 1 fills every slate of row 0 with it: A = {0, 1}; of row 1: A = {1}.
  x = {
    "logits": np.array([[0.0, 1e4, 0.0]] * 2),
    "actions": np.array([0, 1]),
    "propensities": np.full(2, 0.5),
    "rewards": np.ones(2),
    "ranker_logits": np.full((2, 3), 3.7),
  }
  terms = TwoStageIPS(num_slates=2, slate_size=30, dtype="float64").terms(**x)
  np.testing.assert_allclose(terms.ranker_share, [1 / 2, 1.0], rtol=1e-12)


def test_slates_of_one_are_one_stage_ips():
  x = batch()
  two_stage, gradient = value_and_gradient(TwoStageIPS(slate_size=1, alpha=0.5, dtype="float64"), x)
  one_stage, expected = value_and_gradient(IPS(dtype="float64"), x)
  np.testing.assert_allclose(two_stage, one_stage, rtol=1e-12)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-15)


def test_a_ranker_that_prefers_the_logged_item_raises_its_share():
  x = batch(rows=1)
  shares = []
  for margin in (-2.0, 0.0, 2.0):
    x["ranker_logits"] = margin * np.eye(5)[x["actions"]]
    tf.random.set_seed(0)
    loss = TwoStageIPS(num_slates=10, slate_size=5, seed=1, dtype="float64")
    shares.append(loss.terms(**x).ranker_share.numpy()[0])
  assert shares == sorted(shares)
  assert shares[0] < shares[-1]


def test_no_gradient_flows_into_the_ranker():
  x = batch()
  assert value_and_gradient(TwoStageIPS(num_slates=3, slate_size=3), x, "ranker_logits")[1] is None


def test_a_global_seed_fixes_the_slates():
  x = batch()
  loss = TwoStageIPS(alpha=1.0, num_slates=3, slate_size=4, seed=1, dtype="float64")

  def run(seed):
    tf.random.set_seed(seed)
    return loss(**x).numpy()

  np.testing.assert_array_equal(run(0), run(0))
  assert (run(0) != run(1)).any()


def test_draws_anew_at_every_step():
  x = batch()
  loss = TwoStageIPS(alpha=1.0, num_slates=3, slate_size=4, seed=1, dtype="float64")
  step = tf.function(lambda: loss(**x))
  assert (step().numpy() != step().numpy()).any()


@pytest.mark.parametrize(
  "options",
  [{"num_slates": 0}, {"slate_size": 0}, {"sampling_temperature": 0.0}, {"alpha": -0.1}],
)
def test_refuses_options_that_make_no_sense(options):
  with pytest.raises(InputError, match=f"{next(iter(options))}.*{next(iter(options.values()))}"):
    TwoStageIPS(**options)


def test_needs_the_ranker():
  x = batch()
  del x["ranker_logits"]
  with pytest.raises(ValueError, match="TwoStageIPS needs ranker_logits"):
    TwoStageIPS()(**x)
