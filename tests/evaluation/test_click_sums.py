"""Sums of clicks by slot, and the curves that follow from them."""

import itertools

import numpy as np
import pytest

from tf_twostage.data.slates import Slates
from tf_twostage.evaluation import cascade, click_sums
from tf_twostage.evaluation.click_sums import Clicks

CURVE = np.array([1.0, 0.5, 0.8])


def mean_sums(shown, relevance, curve=CURVE):
  """The expectation of `pair_sums`: `shown` [P, L] rows of pairs with relevance [P]."""
  expected_clicks = shown * relevance[:, None] * curve
  return expected_clicks.T @ (shown / shown.sum(axis=1, keepdims=True))


def test_pair_sums_weigh_clicks_by_the_rows_of_the_pair_in_each_slot():
  # Pair 0: slot 0 twice, one click; slot 2 once, clicked. Pair 1: slot 1 once, clicked.
  clicks = Clicks(np.array([0, 0, 2, 1]), np.array([1.0, 0, 1, 1]), np.array([0, 0, 1, 1]), 3)
  sums = clicks.pair_sums(np.array([0, 0, 0, 1]))
  np.testing.assert_allclose(sums[0], [[2 / 3, 0, 1 / 3], [0, 0, 0], [0, 0, 0]])
  np.testing.assert_allclose(sums[1], [[0, 0, 0], [0, 1, 0], [2 / 3, 0, 1 / 3]])


def test_pairs_give_the_curve_whatever_their_relevance_and_slots():
  rng = np.random.default_rng(0)
  relevance = rng.uniform(size=50)
  # Relevant pairs are shown higher, as a policy does that knows them.
  shown = rng.poisson(np.exp(2 * relevance[:, None] * [1, 0, -1])) + 1.0
  np.testing.assert_allclose(click_sums.from_pairs(mean_sums(shown, relevance)), CURVE, rtol=1e-6)


def test_pairs_chain_slots_that_never_share_one():
  shown = np.array([[3.0, 2, 0], [0, 1, 4]])
  sums = mean_sums(shown, np.array([0.3, 0.9]))
  assert sums[0, 2] == 0
  np.testing.assert_allclose(click_sums.from_pairs(sums), CURVE, rtol=1e-4)
  assert click_sums.connected(sums)


def test_slots_without_a_common_pair_are_not_connected():
  assert not click_sums.connected(mean_sums(np.array([[3.0, 2, 0], [0, 0, 4]]), np.ones(2)))


def test_ratios_divide_clicks_by_what_full_examination_would_give():
  sums = np.array([[6.0, 2, 4], [12, 8, 10]])
  np.testing.assert_allclose(click_sums.from_ratios(sums), [1, 0.5, 0.8])


def test_products_give_slope_and_level_by_least_squares():
  rng = np.random.default_rng(1)
  relevance, slope, level = rng.uniform(size=(3, 40)), [0.8, 0.4, 0.2], [0.1, 0.3, 0.0]
  clicked = np.array(slope)[:, None] * relevance + np.array(level)[:, None]
  columns = [np.ones_like(relevance), relevance, clicked, relevance**2, relevance * clicked]
  sums = np.stack([column.sum(axis=1) for column in columns])
  examination, noise = click_sums.from_products(sums)
  np.testing.assert_allclose(examination, [1, 0.5, 0.25])
  np.testing.assert_allclose(noise, [0, 0.3 - 0.5 * 0.1, 0 - 0.25 * 0.1], atol=1e-12)


def test_curves_of_many_sums_are_those_of_each():
  rng = np.random.default_rng(2)
  for curve, shape in ((click_sums.from_pairs, (3, 3)), (click_sums.from_ratios, (2, 3))):
    sums = rng.uniform(1, 2, (4, *shape))
    together = curve(sums)
    np.testing.assert_allclose(together, [curve(each) for each in sums], rtol=1e-5)


def test_resampled_blocks_have_the_mean_and_variance_of_the_bootstrap():
  sums = np.random.default_rng(3).normal(size=(20, 2, 3))
  drawn = click_sums.resampled(sums, 4000, seed=0)
  np.testing.assert_allclose(drawn.mean(axis=0), sums.sum(axis=0), atol=0.3)
  np.testing.assert_allclose(drawn.var(axis=0), 20 * sums.var(axis=0), rtol=0.1)


def all_slates(relevance, went_on):
  """Clicks of the cascade on one slate, with their probability."""
  size = len(relevance)
  for clicked in itertools.product((0, 1), repeat=size):
    for left in range(size + 1):  # the slot after which the user leaves; size: never
      if left < size and (not clicked[left] or any(clicked[left + 1 :])):
        continue
      chance = 1.0
      for k in range(min(left + 1, size)):
        chance *= relevance[k] if clicked[k] else 1 - relevance[k]
        if clicked[k]:
          chance *= 1 - went_on[k] if k == left else went_on[k]
      yield np.array(clicked), chance


def test_paths_make_clicks_unbiased():
  relevance, went_on = np.array([0.7, 0.4, 0.9]), np.array([0.5, 0.8, 0.3])
  slates = Slates(np.array([[0, 1, 2]], np.int32), np.zeros(1, np.int32))
  total, corrected = 0.0, np.zeros(3)
  for clicked, chance in all_slates(relevance, went_on):
    total += chance
    path = cascade.path_probabilities(slates, clicked.astype(float), went_on)
    corrected += chance * clicked / path
  assert total == pytest.approx(1)
  np.testing.assert_allclose(corrected, relevance)


def test_continuation_sums_have_the_true_continuation_and_examination():
  relevance, went_on, rows = np.array([0.7, 0.4, 0.9]), np.array([0.5, 0.8, 0.3]), 20_000
  rng = np.random.default_rng(0)
  item = rng.permuted(np.tile(np.arange(3), (rows, 1)), axis=1)
  stays, examined, clicked = np.ones(rows, bool), [], []
  for k in range(3):
    examined.append(stays)
    clicked.append(stays & (rng.random(rows) < relevance[item[:, k]]))
    stays = stays & ~(clicked[k] & (rng.random(rows) > went_on[k]))
  slates = Slates(np.arange(rows * 3, dtype=np.int32).reshape(rows, 3), np.zeros(rows, np.int32))
  slot, labels = np.tile(np.arange(3), rows), np.stack(clicked, axis=1).ravel().astype(float)
  sums = cascade.continuation_sums(
    slates, Clicks(slot, labels, np.zeros(rows * 3, int), 3), item.ravel()
  ).sum(axis=0)
  np.testing.assert_allclose(cascade.continuation(sums), [*went_on[:2], 1], atol=0.02)
  np.testing.assert_allclose(cascade.from_continuation(sums), np.mean(examined, axis=1), atol=0.02)
