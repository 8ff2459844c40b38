"""The invented slates: exact propensities, clicks of the click model, known values."""

import itertools

import numpy as np
import pytest

from tf_twostage.data.plackett_luce import slot_probabilities
from tf_twostage.data.sets.slates_synthetic import make_slates
from tf_twostage.errors import InputError

SMALL = {"num_users": 3, "num_items": 5, "slate_size": 3}


def slates_with_probabilities(logits, size):
  """Every slate of distinct items with its Plackett-Luce probability."""
  weights = np.exp(logits)
  for slate in itertools.permutations(range(len(logits)), size):
    chance = 1.0
    for k, item in enumerate(slate):
      chance *= weights[item] / (weights.sum() - weights[list(slate[:k])].sum())
    yield slate, chance


@pytest.mark.parametrize("scale", [0, 1, 8])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_slot_probabilities_are_those_of_all_slates(scale, size):
  logits = scale * np.random.default_rng(0).normal(size=(2, 5))
  expected = np.zeros((2, 5, size))
  for user in range(2):
    for slate, chance in slates_with_probabilities(logits[user], size):
      expected[user, slate, range(size)] += chance
  np.testing.assert_allclose(slot_probabilities(logits, size), expected, atol=1e-8)


@pytest.mark.parametrize("scale", [0, 1, 4])
def test_slot_probabilities_of_many_items_follow_from_the_slots_above(scale):
  logits = scale * np.random.default_rng(0).normal(size=300)
  p = np.exp(logits) / np.exp(logits).sum()
  pair = p[:, None] * p / (1 - p[:, None])  # P(b first, c second)
  np.fill_diagonal(pair, 0)
  after = pair / (1 - p[:, None] - p)  # times p_a is P(b, c, a)
  third = p * (after.sum() - after.sum(axis=0) - after.sum(axis=1))
  expected = np.stack([p, pair.sum(axis=0), third], axis=1)
  np.testing.assert_allclose(slot_probabilities(logits[None], 3)[0], expected, rtol=1e-6)


def test_slot_probabilities_of_many_items_sum_to_one_in_each_slot():
  logits = 2 * np.random.default_rng(0).normal(size=(40, 100))
  np.testing.assert_allclose(slot_probabilities(logits, 10).sum(axis=1), 1, atol=1e-7)


@pytest.mark.parametrize("distinct", [True, False])
def test_logged_propensities_are_those_of_the_drawn_slates(distinct):
  world = make_slates(**SMALL, distinct=distinct)
  frame = world.frame(40_000)
  # E[1/propensity] counts the items that can be in a slot.
  inverse = (1 / frame["propensity"]).groupby(frame["slot"])
  assert (abs(inverse.mean() - 5) < 5 * inverse.sem()).all()
  last = frame[frame["slot"] == 2]
  slates = 5 * 4 * 3 if distinct else 5**3
  inverse = 1 / last["cascade_propensity"]
  assert abs(inverse.mean() - slates) < 5 * inverse.sem()
  assert frame.groupby("request_id")["item_id"].nunique().eq(3).all() == distinct


def test_the_cascade_propensity_is_that_of_plackett_luce():
  world = make_slates(**SMALL)
  logits = world.policies["old"]
  items, cascade = world.draw(logits, np.zeros(50, int), np.random.default_rng(0))
  expected = dict(slates_with_probabilities(logits[0], 3))
  np.testing.assert_allclose(cascade[:, -1], [expected[tuple(slate)] for slate in items.tolist()])


@pytest.mark.parametrize("trust", [None, [[0.95, 0.4], [0.9, 0.3], [0.85, 0.2]]])
def test_weighted_clicks_give_examination_times_relevance(trust):
  world = make_slates(**SMALL, **({} if trust is None else {"trust": np.array(trust)}))
  frame = world.frame(40_000)
  weighted = (frame["click"] / frame["propensity"]).groupby(frame["slot"])
  expected = world.click_rate().sum(axis=1).mean(axis=0)
  if trust is None:
    np.testing.assert_allclose(expected, world.examination * world.relevance.sum(axis=1).mean())
  assert (abs(weighted.mean() - expected) < 5 * weighted.sem()).all()


def test_users_leave_after_a_click_as_often_as_the_continuation_says():
  world = make_slates(**SMALL, continuation=np.array([0.25, 0.75, 0.0]))
  rng, users = np.random.default_rng(0), np.zeros(40_000, int)
  click = world.clicks(users, np.tile([0, 1, 2], (len(users), 1)), rng)
  first, second = world.relevance[0, :2]
  assert click[:, 0].mean() == pytest.approx(first, abs=0.01)
  assert click[click[:, 0], 1].mean() == pytest.approx(0.25 * second, abs=0.01)
  assert click[~click[:, 0], 1].mean() == pytest.approx(second, abs=0.02)
  with pytest.raises(InputError, match="depend on the whole slate"):
    world.click_rate()


def test_the_best_ranking_has_ndcg_one_and_policies_less():
  world = make_slates()
  assert world.ndcg(world.best()) == pytest.approx(1)
  assert world.ndcg(np.argsort(-world.policies["old"], axis=1)[:, :10]) < 0.9
  assert world.ndcg(world.best(100)[:, ::-1]) < 0.7


def test_the_seed_fixes_the_world_and_the_log():
  frame = make_slates(**SMALL, seed=1).frame(20, seed=2)
  assert frame.equals(make_slates(**SMALL, seed=1).frame(20, seed=2))
  assert not frame.equals(make_slates(**SMALL, seed=1).frame(20, seed=3))


def test_policies_serve_their_shares():
  world = make_slates(**SMALL, policies={"a": 0.0, "b": 2.0}, shares=(0.9, 0.1))
  frame = world.frame(5000)
  assert (frame["policy"] == "a").mean() == pytest.approx(0.9, abs=0.02)
  uniform = frame[frame["policy"] == "a"]["propensity"]
  np.testing.assert_allclose(uniform, 1 / 5, atol=1e-8)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(InputError, match="slate_size must be within 1 and num_items 5, got 6"):
    make_slates(num_items=5, slate_size=6)
  with pytest.raises(InputError, match="size must be within 1 and the 2 items, got 3"):
    slot_probabilities(np.zeros((1, 2)), 3)
  with pytest.raises(InputError, match="examination must have 3 slots, as slate_size says, got 2"):
    make_slates(**SMALL, examination=np.ones(2))
  with pytest.raises(InputError, match=r"shares must have shape \(2,\)"):
    make_slates(**SMALL, shares=(1.0,))


def test_the_log_has_the_rows_of_the_frame():
  world = make_slates(**SMALL)
  frame, log = world.frame(50, seed=1), world.log(50, seed=1)
  assert log.slates().mask.shape == (50, 3)
  np.testing.assert_allclose(log.rows.propensity, frame["propensity"], rtol=1e-6)
  np.testing.assert_array_equal(log.rows.reward, frame["click"])
  assert [log.policies[code] for code in log.policy] == frame["policy"].tolist()
  assert world.log(50, propensity=None, cascade_propensity=None).rows.propensity is None
