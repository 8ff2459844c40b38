import math

import numpy as np
import pytest
import tensorflow as tf

from tests import oracle
from tests.losses.helpers import UNIT, batch, clipped_batch, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import IPS, ImportanceWeights, TwoStageIPS
from tf_twostage.losses.slates import sample_slates


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
    other = {
      "temperature 1": self.expected(temperature=1.0),
      "K drawn": self.expected(slate_size=self.K + 1),
      "with multiplicity": self.expected(coefficients=oracle.multiset_coefficients),
    }[reading]
    assert self.standard_errors_away(gradients, other).max() > 12

  def test_systematic_slates_estimate_algorithm_1(self):
    loss = TwoStageIPS(
      UNIT,
      alpha=self.ALPHA,
      num_slates=300,
      slate_size=self.K,
      sampling_temperature=self.TEMPERATURE,
      sampling="systematic",
      seed=5,
      dtype="float64",
    )
    tf.random.set_seed(0)
    row = {
      "logits": self.LOGITS[None],
      "actions": np.array([self.ACTION]),
      "propensities": np.array([0.5]),
      "rewards": np.ones(1),
      "ranker_logits": self.RANKER_LOGITS[None],
    }
    # Every call deals anew.
    gradients = np.concatenate([value_and_gradient(loss, row)[1] for _ in range(30)])
    error = gradients.std(axis=0, ddof=1) / math.sqrt(len(gradients))
    assert error.max() < 3e-3
    difference = np.abs(gradients.mean(axis=0) - self.expected())
    assert (difference < 5 * error).all()


@pytest.mark.parametrize("sampling", ["categorical", "systematic"])
def test_loss_is_the_weighted_sum_over_the_slates_drawn(sampling):
  x = batch(rows=4, items=6)
  options = {"num_slates": 7, "slate_size": 4, "sampling": sampling}
  loss = TwoStageIPS(alpha=0.3, sampling_temperature=2.0, seed=9, dtype="float64", **options)
  if sampling == "systematic":
    loss.generator.reset_from_seed(2)
    options["stateless_seed"] = tf.random.Generator.from_seed(2).make_seeds()[:, 0]
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
    np.testing.assert_allclose(terms.ranker_probability[i], np.mean(c, axis=0)[action], rtol=1e-9)
  np.testing.assert_allclose(terms.weights, weights, rtol=1e-9)


def test_systematic_draws_go_on_from_a_checkpoint(tmp_path):
  def drawing(seed):
    loss = TwoStageIPS(
      alpha=1.0, num_slates=3, slate_size=4, sampling="systematic", seed=seed, dtype="float64"
    )
    return tf.train.Checkpoint(loss=loss), tf.function(loss)

  x = batch(rows=4, items=50)
  checkpoint, step = drawing(0)
  step(**x)
  path = checkpoint.write(str(tmp_path / "ckpt"))
  expected = [step(**x).numpy() for _ in range(2)]
  assert (expected[0] != expected[1]).any()
  other, again = drawing(1)
  again(**x)
  other.read(path)
  np.testing.assert_array_equal([again(**x).numpy() for _ in range(2)], expected)


def test_defaults_are_the_published_settings():
  loss = TwoStageIPS()
  assert loss.importance == ImportanceWeights(cap=10.0, floor=0.01, self_normalize=True)
  assert (loss.alpha, loss.num_slates, loss.slate_size) == (1e-2, 100, 30)
  assert (loss.sampling_temperature, loss.sampling) == (math.e, "categorical")


def test_without_alpha_is_one_stage_ips_times_the_ranker_share():
  x = batch()
  terms = TwoStageIPS(alpha=0.0, num_slates=5, slate_size=3, dtype="float64").terms(**x)
  one_stage = IPS(dtype="float64")(**x)
  np.testing.assert_allclose(terms.loss, terms.ranker_probability * one_stage, rtol=1e-12)
  assert (terms.ranker_probability.numpy() < 1).all()


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
  np.testing.assert_allclose(terms.ranker_probability, [1 / 2, 1.0], rtol=1e-12)


@pytest.mark.parametrize("sampling", ["categorical", "systematic"])
def test_with_a_constant_ranker_and_distinct_slates_it_is_one_stage_ips_over_k(sampling):
  # 50,000 items of which 40 are drawn: no slate of this seed repeats one.
  x = batch(rows=4, items=50_000)
  x["ranker_logits"] = np.full_like(x["ranker_logits"], -2.0)
  loss = TwoStageIPS(
    alpha=0.0, num_slates=5, slate_size=3, sampling=sampling, seed=1, dtype="float64"
  )
  tf.random.set_seed(0)
  np.testing.assert_allclose(3 * loss(**x), IPS(dtype="float64")(**x), rtol=1e-9)


def test_alpha_weighs_the_other_items_of_the_slates():
  x = batch()

  def gradient(alpha):
    tf.random.set_seed(0)
    loss = TwoStageIPS(alpha=alpha, num_slates=5, slate_size=4, seed=1, dtype="float64")
    return value_and_gradient(loss, x)[1]

  step = gradient(1.0) - gradient(0.0)
  assert np.abs(step).max() > 0.01
  np.testing.assert_allclose(gradient(0.3), gradient(0.0) + 0.3 * step, atol=1e-12)


def test_normalised_shares_make_the_mean_of_weight_times_share_one():
  def terms(**options):
    tf.random.set_seed(0)
    loss = TwoStageIPS(num_slates=5, slate_size=4, seed=1, dtype="float64", **options)
    return loss.terms(**clipped_batch())

  plain, normalised = terms(), terms(normalize_shares=True)
  np.testing.assert_allclose(
    np.mean(normalised.weights * normalised.ranker_probability), 1.0, rtol=1e-12
  )
  # All rows grow alike.
  factor = 1 / np.mean(plain.weights * plain.ranker_probability)
  assert factor > 1.5
  np.testing.assert_allclose(normalised.loss, factor * plain.loss, rtol=1e-9)
  np.testing.assert_array_equal(normalised.ratio, plain.ratio)


def test_weights_are_those_of_one_stage_ips_at_large_logits_in_float32():
  x = {k: v if k == "actions" else v.astype(np.float32) for k, v in clipped_batch().items()}
  x["logits"] = 200 + 5 * x["logits"]
  terms = TwoStageIPS(alpha=1.0, num_slates=5, slate_size=4).terms(**x)
  expected = IPS().terms(**x)
  np.testing.assert_allclose(terms.ratio, expected.ratio, rtol=1e-3)
  np.testing.assert_allclose(terms.weights, expected.weights, rtol=1e-3)


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
    shares.append(loss.terms(**x).ranker_probability.numpy()[0])
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
  [
    {"num_slates": 0},
    {"slate_size": 0},
    {"sampling_temperature": 0.0},
    {"alpha": -0.1},
    {"sampling": "stratified"},
  ],
)
def test_refuses_options_that_make_no_sense(options):
  with pytest.raises(InputError, match=f"{next(iter(options))}.*{next(iter(options.values()))}"):
    TwoStageIPS(**options)


def test_needs_the_ranker():
  x = batch()
  del x["ranker_logits"]
  with pytest.raises(ValueError, match="TwoStageIPS needs ranker_logits"):
    TwoStageIPS()(**x)


@pytest.mark.parametrize("sampling", ["categorical", "systematic", "exact"])
def test_an_excluded_item_leaves_loss_and_gradient_finite(sampling):
  x = batch(rows=4, items=6)
  excluded = (x["actions"] + 1) % 6
  x["logits"][np.arange(4), excluded] = -np.inf
  loss = TwoStageIPS(num_slates=5, slate_size=4, sampling=sampling, seed=1, dtype="float64")
  value, gradient = value_and_gradient(loss, x)
  assert np.isfinite(value).all()
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[np.arange(4), excluded], np.zeros(4))
