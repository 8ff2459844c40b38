"""Examination estimated from logs of slates whose true examination is known."""

import dataclasses
import re

import numpy as np
import pytest

from tf_twostage import Examination, estimate_examination
from tf_twostage.config import Config, FitConfig, UserLogConfig
from tf_twostage.data.sets import make_slates
from tf_twostage.errors import InputError
from tf_twostage.evaluation import examination
from tf_twostage.workspace import Workspace

WORLD = {"num_users": 100, "num_items": 20, "slate_size": 4}
TRUTH = np.array([1, 1 / 2, 1 / 3, 1 / 4])
TRAINING = FitConfig(epochs=3, batch_size=1024)
UNKNOWN = {"propensity": None, "cascade_propensity": None}


@pytest.fixture(scope="module")
def log():
  return make_slates(**WORLD).log(8000)


def near(found, truth=TRUTH):
  """Whether estimates are within four standard errors of the truth, and these are small."""
  errors = np.maximum(found.standard_error, 1e-9)
  return (np.abs(found.curve - truth) < 4 * errors).all() and errors.max() < 0.03


def test_clicks_alone_are_far_from_the_truth(log):
  # The policies show relevant items first.
  rate = np.bincount(log.rows.position, log.rows.reward) / np.bincount(log.rows.position)
  assert np.abs(rate / rate[0] - TRUTH).max() > 0.01


def test_harvesting_recovers_examination(log):
  assert near(estimate_examination(log, "harvesting"))


def test_randomized_slots_recover_examination_with_propensities(log):
  assert near(estimate_examination(log, "randomized"))


def test_em_recovers_examination(log):
  found = estimate_examination(log, "em", training=TRAINING)
  assert np.abs(found.curve - TRUTH).max() < 0.04


def test_slots_drawn_at_random_need_no_propensities():
  random = make_slates(**WORLD, policies={"random": 0.0}).log(8000, **UNKNOWN)
  assert near(estimate_examination(random, "randomized"))


def test_slots_that_depend_on_the_item_for_the_user_are_refused_without_propensities():
  log = make_slates(**WORLD, policies={"strict": 2.0}).log(3000, **UNKNOWN)
  with pytest.raises(InputError, match="slots depend on the item "):
    estimate_examination(log, "randomized")


def test_propensities_of_something_else_are_refused(log):
  rows = dataclasses.replace(log.rows, propensity=np.sqrt(log.rows.propensity))
  with pytest.raises(InputError, match="weights in slot 0 have the mean"):
    estimate_examination(dataclasses.replace(log, rows=rows), "randomized")


def test_a_policy_with_fixed_slots_cannot_be_harvested(log):
  slot = log.rows.action % 4  # an item has one slot
  first = np.unique(log.slate.astype(np.int64) * 4 + slot, return_index=True)[1]
  rows = dataclasses.replace(log.rows, position=slot)
  fixed = dataclasses.replace(log, rows=rows).select(first)
  with pytest.raises(InputError, match="too few items were shown to the same user"):
    estimate_examination(fixed, "harvesting")


def test_auto_takes_the_method_with_the_smaller_errors(log):
  errors = {
    name: estimate_examination(log, name).standard_error.max()
    for name in ("harvesting", "randomized")
  }
  assert estimate_examination(log).method == min(errors, key=errors.get)


def test_auto_asks_a_model_where_nothing_varies_and_says_why(log, monkeypatch):
  monkeypatch.setattr(examination, "_VAGUE", 0.0)
  monkeypatch.setattr(examination, "_regression", lambda log, clicks, *_: fitted(log, clicks))
  fitted = examination._randomized
  found = estimate_examination(log)
  assert found.method == "em"
  assert "because harvesting has standard errors up to" in found.reason


def test_trust_is_told_from_examination():
  trust = np.stack([np.full(4, 0.98), [0.6, 0.4, 0.3, 0.2]], axis=1)
  world = make_slates(**WORLD, trust=trust)
  found = estimate_examination(world.log(20_000), "em", trust_bias=True, training=TRAINING)
  slope, level = TRUTH * (trust[:, 0] - trust[:, 1]), TRUTH * trust[:, 1]
  np.testing.assert_allclose(found.curve, slope / slope[0], atol=0.12)
  np.testing.assert_allclose(found.noise, level - level[0] * slope / slope[0], atol=0.08)


def test_trust_comes_off_rewards_whose_mean_is_then_relevance_plus_a_constant(log):
  curve, noise = np.array([1, 0.8, 0.6, 0.5]), np.array([0, -0.1, 0.06, -0.2])
  kept = {"method": "em", "reason": "known", "low": curve, "high": curve, "standard_error": curve}
  found = Examination(curve=curve, noise=noise, **kept)
  examined = found.apply(log).examined().reward
  slot = log.rows.position
  expected = (log.rows.reward - noise[slot]) / curve[slot] + (noise / curve).max()
  np.testing.assert_allclose(examined, expected, atol=1e-6)
  assert examined.min() >= 0


def test_a_cascade_is_recovered_and_corrects_rewards():
  world = make_slates(**WORLD, continuation=np.array([0.5, 0.7, 0.8, 1.0]))
  log = world.log(8000)
  found = estimate_examination(log, "cascade")
  np.testing.assert_allclose(found.continuation[:3], world.continuation[:3], atol=0.06)
  assert "harvesting" not in found.note()
  # Rewards divided by examination have the mean of relevance in every slot.
  relevance = world.relevance[log.rows.user_index, log.rows.action]
  seen = found.apply(log).examined().reward
  for k in range(4):
    of_slot = log.rows.position == k
    error = seen[of_slot].std() / np.sqrt(of_slot.sum())
    assert abs(seen[of_slot].mean() - relevance[of_slot].mean()) < 4 * error


def test_a_cascade_where_users_leave_without_a_click_is_doubted(log):
  note = estimate_examination(log, "cascade").note()
  assert re.search(r"harvesting examines slot 2 0\.3\d+ times .* cascade 0\.[78]\d+ times", note)


def test_a_cascade_that_ends_with_the_first_click_has_unknown_errors():
  log = make_slates(**WORLD, continuation=np.array([0, 0, 0, 1])).log(4000)
  found = estimate_examination(log, "cascade")
  np.testing.assert_array_equal(found.continuation, [0, 0, 0, 1])
  clicks = log.slates().of(log.rows.reward)  # who saw a slot has no click above it
  above = np.cumsum(clicks, axis=1) - clicks
  np.testing.assert_allclose(found.curve, (above == 0).mean(axis=0))
  for values in (found.low, found.high, found.standard_error):
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, True])
  assert "with an unknown error" in found.note()
  assert "±" not in found.note()


def test_intervals_contain_the_truth_as_often_as_they_say():
  world = make_slates(**WORLD)
  inside = []
  for seed in range(25):
    found = estimate_examination(world.log(1000, seed), "harvesting", confidence=0.9, seed=seed)
    inside.append((found.low[1:] <= TRUTH[1:]) & (TRUTH[1:] <= found.high[1:]))
  # Three outcomes of a log depend on each other: within three binomial errors of 25 logs.
  assert abs(np.mean(inside) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 25)


def test_rewards_above_one_count_as_clicks(log):
  rows = dataclasses.replace(log.rows, reward=5 * log.rows.reward)
  louder = estimate_examination(dataclasses.replace(log, rows=rows), "harvesting")
  np.testing.assert_array_equal(louder.curve, estimate_examination(log, "harvesting").curve)


def test_a_slot_without_clicks_has_no_estimate_and_counts_as_the_last_one(log):
  silent = np.where(log.rows.position == 2, 0, log.rows.reward).astype(np.float32)
  log = dataclasses.replace(log, rows=dataclasses.replace(log.rows, reward=silent))
  found = estimate_examination(log, "randomized")
  assert np.isnan(found.curve[2])
  assert not np.isnan(found.curve[[0, 1, 3]]).any()
  assert found.to_frame().loc[2].drop("slot").isna().all()
  assert "no row of slots 2 has a reward" in found.note()
  assert "nan" not in found.note()
  column = found.apply(log).examination
  assert column[log.rows.position == 2].max() == pytest.approx(found.curve[3])


def test_a_log_without_slates_is_refused(log):
  plain = dataclasses.replace(log, slate=None)
  with pytest.raises(InputError, match="the log has no slates"):
    estimate_examination(plain)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"method": "guess"}, "unknown method 'guess'; choose auto, randomized, harvesting, em, casc"),
    ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
    ({"method": "harvesting", "trust_bias": True}, "trust_bias needs method em"),
  ],
)
def test_wrong_arguments_are_refused(log, arguments, message):
  with pytest.raises(InputError, match=message):
    estimate_examination(log, **arguments)


def test_examination_of_a_shorter_log_is_refused(log):
  found = estimate_examination(log.select(log.rows.position < 2), "harvesting")
  with pytest.raises(InputError, match="slots reach 3, but examination is known up to 1"):
    found.apply(log)


def test_a_finished_estimate_is_loaded(log, tmp_path, monkeypatch):
  config = Config(user_log=UserLogConfig(examination="harvesting"))
  found, stage = examination.estimate(config, log, Workspace(tmp_path))
  monkeypatch.setattr(examination, "estimate_examination", None)
  again, name = examination.estimate(config, log, Workspace(tmp_path))
  assert name == stage
  assert str(again) == str(found)
  assert again.facts() == found.facts()


def test_the_estimate_is_shown_and_saved(log, tmp_path):
  found = estimate_examination(log, "harvesting")
  found.save(tmp_path)
  lines = (tmp_path / "examination.csv").read_text().splitlines()
  assert lines[0] == "slot,examination,standard_error,low,high"
  assert len(lines) == 1 + 4
  assert (tmp_path / "examination.png").read_bytes()[:4] == b"\x89PNG"
  assert "harvesting" in str(found)
