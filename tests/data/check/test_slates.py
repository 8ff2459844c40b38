"""The report on slates: sizes, faults, rewards by slot, policies over time."""

import dataclasses

import numpy as np
import pytest

from tf_twostage.data.check import examine, slates
from tf_twostage.data.sets import make_slates


@pytest.fixture(scope="module")
def world():
  return make_slates(num_users=30, num_items=20, slate_size=4)


@pytest.fixture(scope="module")
def log(world):
  return world.log(2000)


def with_rows(log, **columns):
  return dataclasses.replace(log, rows=dataclasses.replace(log.rows, **columns))


def facts(log):
  return {(f.section, f.name): f.value for f in examine.check(log).facts}


def texts(log, severity):
  return " ".join(f.text for f in examine.check(log).findings if f.severity == severity)


def test_right_slates_have_no_faults(log):
  found = facts(log)
  assert found["Slates", "slates"] == 2000
  assert found["Slates", "rows a slate"] == "4 to 4"
  for fault in (
    "slates that lack a slot",
    "rows in a slot that is taken",
    "slates of several users",
  ):
    assert found["Slates", fault] == 0
  assert examine.check(log).usable
  assert not examine.unusable(log)


def test_rewards_by_slot_have_standard_errors_by_slate(log):
  rewards = log.slates().of(log.rows.reward)
  found = slates.by_slot(log)
  np.testing.assert_allclose(found["mean"], rewards.mean(axis=0))
  np.testing.assert_allclose(found["sem"], rewards.std(axis=0, ddof=1) / np.sqrt(2000), rtol=1e-5)
  clicks = rewards.sum(axis=1)
  assert facts(log)["Reward by slot", "slates with one reward"] == (clicks == 1).sum()
  assert facts(log)["Reward by slot", "slates with several"] == (clicks > 1).sum()


def test_slots_that_are_missing_are_counted_up_to_the_last_of_their_slate(log):
  lacking = log.select(~((log.slate < 10) & (log.rows.position == 1)))
  assert facts(lacking)["Slates", "slates that lack a slot"] == 10
  assert "10 of 2000 slates lack a slot above their last" in texts(lacking, "warning")
  shorter = log.select(log.rows.position < 3)
  assert facts(shorter)["Slates", "slates that lack a slot"] == 0


@pytest.mark.parametrize(
  ("fault", "words"),
  [
    ("double", "3 rows have the slate and position of an earlier row"),
    ("users", "3 of 2000 slates have rows of several users"),
    ("far", "positions reach 5000, of at most 999"),
    ("prefix", "3 rows have a cascade_propensity above their propensity"),
    ("from one", "the lowest is 1: number slots from 0, or from 1 and write `first_position: 1`"),
  ],
)
def test_what_cannot_be_slates_is_a_problem_with_its_remedy(log, fault, words):
  rows, chosen = log.rows, (log.slate < 3) & (log.rows.position == 2)
  if fault == "double":
    log = with_rows(log, position=np.where(chosen, 1, rows.position))
  elif fault == "users":
    log = with_rows(log, user_index=np.where(chosen, (rows.user_index + 1) % 30, rows.user_index))
  elif fault == "far":
    log = with_rows(log, position=np.where(chosen, 5000, rows.position))
  elif fault == "prefix":
    prefix = np.where(chosen, 1, 0.5 * rows.propensity).astype(np.float32)
    log = dataclasses.replace(log, cascade_propensity=prefix)
  else:
    log = with_rows(log, position=rows.position + 1)
  assert words in texts(log, "problem")
  assert not examine.check(log).usable
  assert any(words in text for text in examine.unusable(log))


def test_slates_of_one_row_each_are_warned_of(log):
  alone = dataclasses.replace(log, slate=np.arange(len(log), dtype=np.int32))
  assert "every slate has one row" in texts(alone, "warning")
  assert "lack a slot above" not in texts(alone, "warning")
  assert "every slate has one row" not in texts(log, "warning")


@pytest.mark.parametrize("column", ["policy", "time"])
def test_slates_whose_rows_differ_are_counted(log, column):
  names = {"policy": "slates of several policies", "time": "slates of several times"}
  assert ("Slates", names[column]) not in facts(log)
  values = getattr(log, column)
  odd = np.where((log.slate < 3) & (log.rows.position == 2), values[0] + 1, values[0])
  divided = dataclasses.replace(log, **{column: odd.astype(values.dtype)})
  if column == "policy":
    divided = dataclasses.replace(divided, policies=("old", "new", "newer"))
    assert "3 of 2000 slates have rows of several policies" in texts(divided, "warning")
  assert facts(divided)["Slates", names[column]] == 3


def test_policies_have_their_rows_and_times(log):
  found = facts(log)
  for code, name in enumerate(log.policies):
    assert found["Logging policies", f"rows of {name}"] == (log.policy == code).sum()
  assert "first row of old" in [name for _, name in found]
  later = log.time + 1e8 * (log.policy == 0)
  apart = dataclasses.replace(log, time=later)
  before, after = log.policies[1], log.policies[0]
  assert f"policy {after} begins after policy {before} ends" in texts(apart, "warning")
  assert "begins after" not in texts(log, "warning")


def test_propensities_of_several_policies_may_sum_to_more_than_one(log):
  certain = with_rows(log, propensity=np.full(len(log), 0.9))
  one = dataclasses.replace(certain, policy=None, policies=())
  sums = [facts(each)["Propensity", "largest sum of propensities"] for each in (certain, one)]
  assert sums[0] < sums[1]


def test_users_who_leave_after_a_click_are_noted(world):
  leaving = dataclasses.replace(world, continuation=np.zeros(4))
  assert "no slate has several rewards" in texts(leaving.log(300), "note")


def test_examination_is_said_to_be_logged_or_not(log):
  assert facts(log)["Reward by slot", "examination"] == "not logged"
  given = log.with_examination(np.array([0.8, 0.4, 0.2, 0.1]))
  assert facts(given)["Reward by slot", "lowest examination"] == pytest.approx(0.125)


def test_slates_are_drawn(log):
  titles = [axis.get_title() for axis in examine.check(log).plot().axes]
  assert {"Mean reward by slot", "Rows of each policy"} <= set(titles)
  nameless = dataclasses.replace(log, policy=None, policies=())
  assert "Rows of a slate" in [axis.get_title() for axis in examine.check(nameless).plot().axes]
