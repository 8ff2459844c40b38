"""Slates: what a draw's law is, and what the ranker makes of the slates drawn."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests import oracle
from tests.policy_oracle import ranker_probability
from tf_twostage.losses import slates as slates_module
from tf_twostage.losses.slates import SAMPLING, sample_slates, slate_counts

every_sampling = pytest.mark.parametrize("sampling", SAMPLING)


def counts(slates, actions, ranker_logits, alpha):
  """`slate_counts` of slates in any order: it asks for repeats to stand next to each other."""
  result = slate_counts(
    tf.constant(np.sort(slates), tf.int32),
    tf.constant(actions),
    tf.constant(ranker_logits),
    alpha=alpha,
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

  def test_drawing_an_item_again_changes_nothing(self):
    ranker_logits = np.log([[1.0, 2.0, 3.0]])
    drawn = counts([[[1, 2, 2, 2]]], [0], ranker_logits, alpha=0.5)
    once = counts([[[1, 2]]], [0], ranker_logits, alpha=0.5)
    np.testing.assert_allclose(drawn[0], once[0], rtol=1e-12)
    np.testing.assert_allclose(drawn[1], once[1], rtol=1e-12)

  @hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
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

  @every_sampling
  def test_equals_one_slate_at_a_time_of_slates_as_they_are_drawn(self, sampling):
    rng = np.random.default_rng(5)
    logits, ranker_logits = 2 * rng.normal(size=(2, 6, 5))
    actions = rng.integers(5, size=6)
    tf.random.set_seed(0)
    slates = sample_slates(
      tf.constant(logits), num_slates=8, slate_size=7, sampling=sampling, seed=2
    )
    weights, share = slate_counts(
      slates, tf.constant(actions), tf.constant(ranker_logits), alpha=0.4
    )
    for i in range(6):
      expected = np.mean(
        [
          oracle.slate_coefficients(s, actions[i], ranker_logits[i], 0.4) for s in slates[i].numpy()
        ],
        axis=0,
      )
      np.testing.assert_allclose(weights[i], expected, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(share[i], expected[actions[i]], rtol=1e-9)

  @pytest.mark.parametrize(("margin", "q"), [(1e4, 0.0), (-1e4, 1.0)])
  def test_extreme_ranker_logits_saturate(self, margin, q):
    ranker_logits = np.array([[0.0, margin, margin]], np.float32)
    weights, share = counts([[[1, 2, 2]]], [0], ranker_logits, alpha=1.0)
    np.testing.assert_allclose(share, [q], atol=1e-20)
    np.testing.assert_allclose(weights, [[q, q, q]], atol=1e-20)

  def test_a_row_never_counts_nothing(self):
    """The loss divides by what a row counts in all."""
    weights, _ = counts([[[1, 2]]], [0], np.array([[0.0, 1e4, 1e4]], np.float32), alpha=0.0)
    assert weights.sum() > 0

  def test_neither_counts_nor_shares_carry_a_gradient(self):
    ranker_logits = tf.constant([[0.0, 1.0, 2.0]])
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(ranker_logits)
      result = slate_counts(tf.constant([[[1, 2]]]), tf.constant([0]), ranker_logits, alpha=0.5)
    assert [tape.gradient(t, ranker_logits) for t in result] == [None, None]


def draw(logits, num_slates, slate_size, *, rows=1, sampling="systematic", seed=1, **options):
  """Slates [rows, τ, K-1] of one row of logits [N], many times over."""
  tf.random.set_seed(seed)
  return sample_slates(
    tf.constant(np.tile(logits, (rows, 1))),
    num_slates=num_slates,
    slate_size=slate_size,
    sampling=sampling,
    seed=seed,
    **options,
  ).numpy()


def times_drawn(slates, items):
  """[rows, N] how often an item is among all draws of a row."""
  return np.stack([np.bincount(row.ravel(), minlength=items) for row in slates])


class TestSampleSlates:
  @every_sampling
  @pytest.mark.parametrize("slate_size", [1, 2, 5])
  def test_shape_leaves_a_place_for_the_logged_item(self, sampling, slate_size):
    slates = sample_slates(tf.zeros([2, 7]), num_slates=3, slate_size=slate_size, sampling=sampling)
    assert slates.shape == (2, 3, slate_size - 1)
    assert slates.dtype == tf.int32

  @every_sampling
  @pytest.mark.parametrize("temperature", [1.0, math.e])
  def test_frequencies_follow_the_tempered_softmax(self, sampling, temperature):
    logits = np.array([0.0, 1.0, -1.0, 2.0])
    n = 40_000
    slates = draw(logits, n // 4, 5, sampling=sampling, temperature=temperature)
    frequencies = np.bincount(slates.ravel(), minlength=4) / n
    p = oracle.softmax(logits / temperature)
    assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / n)).all()

  @every_sampling
  def test_rows_follow_their_own_logits(self, sampling):
    slates = sample_slates(
      1e4 * tf.eye(3), num_slates=4, slate_size=6, temperature=math.e, sampling=sampling
    )
    np.testing.assert_array_equal(slates, np.tile(np.arange(3)[:, None, None], (1, 4, 5)))

  @every_sampling
  @pytest.mark.parametrize("dtype", [np.float32, np.float64])
  def test_items_are_of_the_catalogue(self, sampling, dtype):
    logits = np.random.default_rng(0).normal(size=130).astype(dtype)
    slates = draw(logits, 50, 9, rows=20, sampling=sampling)
    assert slates.min() >= 0
    assert slates.max() < 130

  @every_sampling
  def test_repeats_stand_next_to_each_other(self, sampling):
    slates = draw(2 * np.random.default_rng(0).normal(size=9), 40, 8, rows=30, sampling=sampling)
    slates = slates.reshape(-1, 7)
    changes = (slates[:, 1:] != slates[:, :-1]).sum(axis=1)
    distinct = np.array([len(set(slate)) for slate in slates])
    np.testing.assert_array_equal(changes + 1, distinct)
    assert (distinct < 7).any()

  @every_sampling
  def test_a_global_seed_fixes_the_slates(self, sampling):
    logits = np.random.default_rng(0).normal(size=50)
    first, again, other = (draw(logits, 6, 5, sampling=sampling, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()

  @every_sampling
  def test_draws_anew_at_every_step(self, sampling):
    step = tf.function(
      lambda: sample_slates(
        tf.zeros([1, 50]), num_slates=6, slate_size=5, sampling=sampling, seed=1
      )
    )
    assert (step().numpy() != step().numpy()).any()

  @every_sampling
  def test_rows_alike_get_slates_of_their_own(self, sampling):
    slates = draw(np.zeros(50), 6, 5, rows=2, sampling=sampling)
    assert (slates[0] != slates[1]).any()

  @every_sampling
  def test_logits_receive_no_gradient(self, sampling):
    logits = tf.zeros([2, 5])
    with tf.GradientTape() as tape:
      tape.watch(logits)
      slates = sample_slates(logits, num_slates=3, slate_size=4, sampling=sampling)
      value = tf.cast(slates, tf.float32)
    assert tape.gradient(value, logits) is None


class TestSystematicDraws:
  """A Latin hypercube: τ strata for each of K - 1 places, dealt to the slates."""

  LOGITS = np.array([0.0, 1.5, -1.0, 2.0, -3.0, 0.7])
  P = oracle.softmax(LOGITS)

  def calls(self, num_slates, slate_size, number, rows=1):
    """Slates of independent calls, [calls, rows, τ, K-1]."""
    logits = tf.constant(np.tile(self.LOGITS, (rows, 1)))
    step = tf.function(
      lambda seed: sample_slates(
        logits,
        num_slates=num_slates,
        slate_size=slate_size,
        sampling="systematic",
        stateless_seed=seed,
      )
    )
    return np.stack([step(tf.constant([n, 7])).numpy() for n in range(number)])

  @pytest.mark.parametrize("num_slates", [1, 2, 5])
  def test_places_of_a_slate_are_independent_for_any_number_of_slates(
    self, monkeypatch, num_slates
  ):
    """Items of the first slate, as a multiset: chi-square of every pair of two draws."""
    monkeypatch.setattr(slates_module, "_CELLS", 2**12)  # a quicker call
    pairs = self.calls(num_slates, 3, 1000)[:, 0, 0]
    observed = np.zeros((6, 6))
    np.add.at(observed, tuple(np.sort(pairs, axis=1).T), 1)
    expected = 1000 * np.triu(np.outer(self.P, self.P) * (2 - np.eye(6)))
    often = expected > 5
    rest = [f[~often].sum() for f in (observed, expected)]
    chi_square = np.sum((observed - expected)[often] ** 2 / expected[often])
    chi_square += (rest[0] - rest[1]) ** 2 / rest[1]
    # the 0.9999 quantile at as many degrees of freedom as there are cells, less one
    assert chi_square < scipy.stats.chi2.ppf(0.9999, often.sum())

  @pytest.mark.parametrize("num_slates", [1, 2, 5, 20])
  def test_the_mean_share_is_that_of_independent_draws(self, num_slates):
    """29 draws, which share no strata: the bias of equidistant quantiles was up to 62%."""
    ranker = np.array([0.3, -1.0, 3.0, -2.0, 5.0, 1.0])
    expected = ranker_probability(self.P, ranker, np.array([1]), 30)[0]
    slates = self.calls(num_slates, 30, 200, rows=20)
    odds = np.exp(ranker[slates] - ranker[1])
    means = (1 / (1 + odds.sum(axis=-1))).mean(axis=(1, 2))  # by call: rows share a deal
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert error < 0.1 * expected
    assert abs(means.mean() - expected) < 4 * error

  def test_every_place_takes_each_item_tau_p_times_rounded_up_or_down_twice(self):
    """A stratum that an item shares with its neighbours may go either way, at both its ends."""
    seen = self.calls(40, 2, 50)[:, 0, :, 0]
    times = times_drawn(seen, 6)
    assert (np.abs(times - 40 * self.P) < 2).all()

  def test_a_large_catalogue_comes_out_m_p_times_on_average(self):
    # Blocks of the cumulative sum do not show: 3,000 items, of which most come out rarely.
    logits = 2 * np.random.default_rng(2).normal(size=3000).astype(np.float32)
    p = oracle.softmax(logits.astype(np.float64))
    rows, m = 400, 50 * 9
    times = times_drawn(draw(logits, 50, 10, rows=rows), 3000)
    error = np.sqrt(m * p / rows)
    assert (np.abs(times.mean(axis=0) - m * p) < 5 * error + 5 / rows).all()

  def test_counts_vary_less_than_those_of_independent_draws(self):
    ranker_logits = tf.constant(np.tile([[0.3, -1.0, 0.4, 0.0, 2.0, 1.0]], (500, 1)))
    variance = {}
    for sampling in SAMPLING:
      slates = draw(self.LOGITS, 10, 5, rows=500, sampling=sampling)
      weights, _ = slate_counts(
        tf.constant(slates), tf.ones(500, tf.int32), ranker_logits, alpha=1.0
      )
      variance[sampling] = weights.numpy().var(axis=0).sum()
    assert variance["systematic"] < 0.7 * variance["categorical"]

  def test_more_slates_than_cells_are_drawn(self, monkeypatch):
    monkeypatch.setattr(slates_module, "_CELLS", 8)
    times = times_drawn(draw(self.LOGITS, 1000, 2, rows=20), 6)
    assert (np.abs(times.mean(axis=0) - 1000 * self.P) < 1).all()


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_invalid_logits_draw_items_of_the_catalogue(sampling, value):
  for logits in ([0.0, value, 1.0], [value] * 3):
    slates = draw(np.array(logits), 4, 5, rows=3, sampling=sampling)
    assert set(slates.ravel()) <= {0, 1, 2}


@pytest.mark.parametrize("sampling", SAMPLING)
def test_slates_compile(sampling):
  compiled = tf.function(
    lambda z: sample_slates(z, num_slates=400, slate_size=3, sampling=sampling, seed=1),
    jit_compile=True,
  )
  logits = tf.constant(TestSystematicDraws.LOGITS[None], tf.float32)
  frequencies = times_drawn(compiled(logits).numpy(), 6)[0] / 800
  p = TestSystematicDraws.P
  assert (np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / 800)).all()


def test_systematic_draws_survive_sums_that_fall_by_a_rounding(monkeypatch):
  cumsum = slates_module._cumsum

  def rounded(x, **options):
    sums = cumsum(x, **options)
    if "scale" in options:  # those that items start at: the last one falls below the one before
      sums = tf.floor(sums) - tf.constant([0.0, 0.0, 0.0, 1e-3])
    return sums

  monkeypatch.setattr(slates_module, "_cumsum", rounded)
  logits = tf.constant([[0.0, 0.0, -np.inf, -np.inf]])
  cells = tf.range(10)[None]
  for seed in range(12):  # the order starts with every item
    draws = slates_module.items_at(logits, cells, 10, tf.constant([seed, 0]))
    assert draws.numpy().min() >= 0
    assert draws.numpy().max() < 4
