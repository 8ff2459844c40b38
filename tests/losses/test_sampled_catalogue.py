"""A part of the catalogue in place of the whole."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.losses.helpers import RAW, batch, every_variant, make, value_and_gradient
from tf_twostage.errors import InputError
from tf_twostage.losses import DRAWS, IPS, CrossEntropy, Support, TwoStageIPS, sample_support
from tf_twostage.policies import two_stage_probabilities

COUNTS = np.array([2, 0, 5, 1, 0, 0, 3])
N = len(COUNTS)
P = {
  "uniform": np.full(N, 1 / N),
  # Ranks by count: items 2, 6, 0, 3, then those without, in their order.
  "log_uniform": np.log1p(1 / np.array([3, 5, 1, 4, 6, 7, 2])) / np.log(N + 1),
  "popularity": (COUNTS + 1) / (COUNTS.sum() + N),
}
every_kind = pytest.mark.parametrize("kind", sorted(DRAWS))


def given(*items):
  """Draws that come out so, by the probabilities of `uniform`."""
  log_p = tf.fill([len(items)], np.float32(-np.log(N)))
  return lambda quantiles: (tf.constant(items, tf.int32), log_p)


def support_of(actions, draws, **options):
  return sample_support(actions, draws, seed=[0, 0], **options)


def restricted(x, support: Support):
  """The batch on a support: what a model that scores the support alone passes on."""
  items = np.asarray(support.items)
  return {
    **x,
    "logits": x["logits"][:, items],
    "actions": np.asarray(support.positions),
    "ranker_logits": x["ranker_logits"][:, items],
    "log_q": np.asarray(support.log_q, np.float64),
  }


class TestDraws:
  @every_kind
  def test_quantiles_fall_on_items_by_their_probability(self, kind):
    quantiles = (tf.range(100_000, dtype=tf.float64) + 0.5) / 100_000
    items, log_p = DRAWS[kind](COUNTS)(quantiles)
    assert items.dtype == tf.int32
    np.testing.assert_allclose(np.bincount(items, minlength=N) / 100_000, P[kind], atol=2e-5)
    np.testing.assert_allclose(np.exp(log_p), P[kind][items], rtol=1e-5)
    assert P[kind].sum() == pytest.approx(1)

  @every_kind
  def test_the_last_quantile_is_an_item(self, kind):
    items, _ = DRAWS[kind](COUNTS)(tf.constant([0.0, np.nextafter(1.0, 0.0)], tf.float64))
    assert items.numpy().min() >= 0
    assert items.numpy().max() < N

  def test_a_million_items_are_told_apart(self):
    places = np.array([0, 1, 499_999, 999_999])
    items, _ = DRAWS["uniform"](np.zeros(10**6))(tf.constant((places + 0.5) / 1e6, tf.float64))
    np.testing.assert_array_equal(items, places)


class TestSampleSupport:
  def test_each_item_stands_for_what_it_should(self):
    # 3 is logged twice, 5 is hard and drawn, 0 is drawn twice, 6 once: M = 4.
    support = support_of([3, 1, 3], given(0, 0, 5, 6), size=9, hard=tf.constant([5, 1]))
    np.testing.assert_array_equal(support.items, [0, 0, 1, 1, 3, 3, 5, 5, 6])
    once, twice = np.log(4 / N), np.log(4 / N / 2)
    expected = [twice, np.inf, 0, np.inf, 0, np.inf, 0, np.inf, once]
    np.testing.assert_allclose(support.log_q, expected, rtol=1e-6)
    np.testing.assert_array_equal(support.positions, [4, 2, 4])
    assert support.items.dtype == support.positions.dtype == tf.int32

  def test_draws_follow_the_seed_alone(self):
    draws = DRAWS["uniform"](np.zeros(1000))
    first, again, other = (
      sample_support(tf.constant([0]), draws, size=50, seed=seed).items.numpy()
      for seed in ([7, 1], [7, 1], [7, 2])
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()

  def test_draws_are_spread(self):
    support = sample_support(tf.constant([0]), DRAWS["uniform"](np.zeros(50)), size=51, seed=[0, 3])
    # One in each fiftieth, which is each item once, and 0 is logged.
    np.testing.assert_array_equal(support.items, [0, *range(50)])

  @pytest.mark.parametrize(("size", "hard"), [(3, None), (4, [1]), (2, None)])
  def test_a_size_without_room_for_draws_is_refused(self, size, hard):
    with pytest.raises(InputError, match="raise support_size, or lower batch_size"):
      support_of([1, 2, 3], given(0), size=size, hard=hard)

  def test_a_batch_of_unknown_size_is_refused(self):
    step = tf.function(lambda actions: support_of(actions, given(0), size=9))
    with pytest.raises(ValueError, match="batches of a known size"):
      step.get_concrete_function(tf.TensorSpec([None], tf.int32))


def on_inclusion(variant):
  """Whether a loss reads the probability of being among distinct candidates."""
  return make(variant).stage == "distinct"


class TestLossesOnASupport:
  @every_variant()
  def test_all_items_for_themselves_are_the_full_loss(self, variant):
    x = batch()
    whole = Support(np.arange(5), np.zeros(5), x["actions"])

    def fresh(inputs):  # one that has drawn before draws other slates
      tf.random.set_seed(0)
      return value_and_gradient(make(variant, dtype="float64"), inputs)

    value, gradient = fresh(restricted(x, whole))
    expected, expected_gradient = fresh(x)
    # The time at which K items have rung is found by iteration, which starts elsewhere here.
    inexact = {"rtol": 1e-7, "atol": 1e-7} if on_inclusion(variant) else {"rtol": 0}
    np.testing.assert_allclose(value, expected, **inexact)
    np.testing.assert_allclose(gradient, expected_gradient, **inexact)

  @every_variant()
  def test_repeats_stand_for_nothing(self, variant):
    x = batch()
    twice = Support([0, 1, 2, 3, 4, 4], [0, 0, 0, 0, 0, np.inf], x["actions"])

    def fresh(inputs):
      tf.random.set_seed(0)
      return value_and_gradient(make(variant, dtype="float64"), inputs)

    value, gradient = fresh(restricted(x, twice))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 5], 0.0)
    drawn = make(variant).get_config().keys() & {"num_slates", "rank_weights"}
    if not drawn or "exact" in variant:  # else draws shift
      rtol = 1e-7 if on_inclusion(variant) else 1e-9
      np.testing.assert_allclose(value, fresh(x)[0], rtol=rtol)

  @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
  @pytest.mark.parametrize("variant", [v for v in ("two_stage_ips, exact", "ips, two_stage")])
  def test_an_item_that_stands_for_three_is_three_items(self, variant, temperature):
    """Three items alike in everything, or one with Q = 1/3: the same loss, exactly."""
    x = batch(items=7)
    x["actions"] %= 4
    for name in ("logits", "ranker_logits"):
      x[name][:, 5] = x[name][:, 6] = x[name][:, 4]
    part = restricted(x, Support(np.arange(5), [0, 0, 0, 0, -np.log(3)], x["actions"]))
    options = {"sampling_temperature": temperature} if "exact" in variant else {}
    loss = make(variant, dtype="float64", **options)
    value, gradient = value_and_gradient(loss, part)
    expected, full_gradient = value_and_gradient(loss, x)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient[:, :4], full_gradient[:, :4], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient[:, 4], full_gradient[:, 4:].sum(axis=1), rtol=1e-9)

  @pytest.mark.parametrize("sampling", ["categorical", "systematic"])
  def test_slates_are_drawn_at_their_temperature_from_all_that_items_stand_for(self, sampling):
    """Many slates have the ranker's share of the catalogue, whose items hardly ever repeat."""
    x = batch(rows=3, items=1004)
    x["actions"] = np.array([0, 1, 2])
    for name in ("logits", "ranker_logits"):
      x[name][:, 4:] = x[name][:, 4:5]
    part = restricted(x, Support(np.arange(5), [0, 0, 0, 0, -np.log(1000)], x["actions"]))
    options = {"slate_size": 4, "num_slates": 4000, "sampling_temperature": 2.0, "seed": 1}
    tf.random.set_seed(0)
    share, expected = (
      TwoStageIPS(sampling=s, dtype="float64", **options).terms(**columns).ranker_probability
      for s, columns in ((sampling, part), ("exact", x))
    )
    np.testing.assert_allclose(share, expected, rtol=0.02)


class TestExpectations:
  """All draws of a tiny catalogue, equally likely: two of seven items, with replacement."""

  @pytest.fixture(scope="class")
  def enumeration(self):
    x = batch(rows=2, items=N, seed=4)
    x["actions"] = np.array([4, 1])
    parts = [
      restricted(x, support_of([4, 1], given(*drawn), size=5, hard=tf.constant([6])))
      for drawn in itertools.product(range(N), repeat=2)
    ]
    return x, parts

  def test_the_denominator_is_unbiased(self, enumeration):
    x, parts = enumeration
    denominators = [np.exp(part["logits"] - part["log_q"]).sum(axis=1) for part in parts]
    expected = np.exp(x["logits"]).sum(axis=1)
    np.testing.assert_allclose(np.mean(denominators, axis=0), expected, rtol=1e-6)

  def test_probabilities_come_out_too_large_and_cross_entropy_too_small(self, enumeration):
    x, parts = enumeration
    x = {**x, "rewards": np.ones(2)}
    parts = [{**part, "rewards": np.ones(2)} for part in parts]
    entropy = np.mean([CrossEntropy(dtype="float64")(**part) for part in parts], axis=0)
    ratio = np.mean([IPS(RAW, dtype="float64").terms(**part).ratio for part in parts], axis=0)
    np.testing.assert_array_less(entropy, CrossEntropy(dtype="float64")(**x))
    np.testing.assert_array_less(IPS(RAW, dtype="float64").terms(**x).ratio, ratio)

  @every_kind
  def test_the_denominator_is_unbiased_for_every_kind_of_draws(self, kind):
    """Over many seeds, within three standard errors."""
    draws = DRAWS[kind](COUNTS)
    exponentials = tf.exp(tf.constant(batch(items=N, seed=4)["logits"][0], tf.float32))

    def denominator(seed):
      support = sample_support(tf.constant([4]), draws, size=4, seed=[seed, 0])
      return tf.reduce_sum(tf.gather(exponentials, support.items) * tf.exp(-support.log_q))

    run = tf.function(lambda seeds: tf.map_fn(denominator, seeds, fn_output_signature=tf.float32))
    found = run(tf.range(3000)).numpy() / exponentials.numpy().sum()
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - 1) < 3 * error
    assert 1e-4 < error < 0.02

  def test_the_bias_is_half_the_squared_relative_error_of_the_denominator(self):
    """2,000 items, of which 100 and 400 are drawn."""
    logits = tf.constant(batch(rows=1, items=2000, seed=5)["logits"], tf.float32)
    draws, loss = DRAWS["uniform"](np.zeros(2000)), CrossEntropy()
    one = tf.ones([1])

    def bias_and_prediction(size):
      def of_seed(seed):
        support = sample_support(tf.constant([7]), draws, size=size, seed=[seed, 0])
        scores = tf.gather(logits, support.items, axis=1)
        ratio = tf.reduce_sum(tf.exp(scores - support.log_q)) / tf.reduce_sum(tf.exp(logits))
        return ratio, loss(scores, support.positions, one, one, log_q=support.log_q)[0]

      run = tf.function(
        lambda seeds: tf.map_fn(of_seed, seeds, fn_output_signature=(tf.float32, tf.float32))
      )
      ratio, entropy = run(tf.range(400))
      # The denominator's own error, whose expectation is 0, taken off: less noise.
      biased = entropy - loss(logits, [7], one, one) - (ratio - 1)
      return np.mean(biased), -np.var(ratio) / 2

    (few, predicted_few), (many, predicted_many) = map(bias_and_prediction, (100, 400))
    np.testing.assert_allclose([few, many], [predicted_few, predicted_many], rtol=0.15)
    assert 3 < few / many < 7

  def test_two_stage_probabilities_of_a_support_add_up_to_those_of_what_it_stands_for(self):
    logits, ranker_logits = np.random.default_rng(0).normal(size=(2, 1, 6))
    for z in (logits, ranker_logits):
      z[:, 4] = z[:, 5] = z[:, 3]
    full = two_stage_probabilities(logits, ranker_logits, 3).numpy()
    log_q = np.array([0, 0, 0, -np.log(3)])
    part = two_stage_probabilities(logits[:, :4] - log_q, ranker_logits[:, :4], 3).numpy()
    np.testing.assert_allclose(part[:, :3], full[:, :3], rtol=1e-9)
    np.testing.assert_allclose(part[:, 3], full[:, 3:].sum(axis=1), rtol=1e-9)
