"""Splits: every row in one part, shares met, times respected, leaks found."""

import numpy as np
import pytest

from tf_twostage.data import splits
from tf_twostage.errors import InputError


def split(method, rows=10, **options):
  return splits.split(method, **{"user_index": np.arange(rows), **options})


def sizes(masks):
  return tuple(int(mask.sum()) for mask in masks.values())


def test_by_time_the_latest_rows_test():
  time = np.random.default_rng(0).permutation(100).astype(float)
  result = split("time", time=time, validation=0.2, test=0.1)
  assert sizes(result) == (70, 20, 10)
  assert time[result["train"]].max() < time[result["validation"]].min()
  assert time[result["validation"]].max() < time[result["test"]].min()


def test_rows_of_one_moment_stay_together():
  time = np.array([0, 1, 1, 1, 1, 1, 1, 2, 3, 3])
  result = split("time", time=time, validation=0.4, test=0.2)
  np.testing.assert_array_equal(result["test"], time == 3)
  # Four rows should validate: the cut falls among the ones, which all go.
  np.testing.assert_array_equal(result["validation"], (time == 1) | (time == 2))


def test_rows_of_one_time_cannot_be_split_by_it():
  time = np.full(10, 3.0)
  with pytest.raises(InputError, match="all rows have one time; split by user or at random"):
    split("time", time=time)
  random = split("random", time=time)
  for name, mask in split("auto", time=time).items():
    np.testing.assert_array_equal(mask, random[name])


@pytest.mark.parametrize("method", ["time", "random"])
def test_without_shares_all_rows_train(method):
  assert sizes(split(method, time=np.arange(10), validation=0, test=0)) == (10, 0, 0)


def test_at_random_shares_are_met_and_the_seed_fixes_the_draw():
  first, again, other = (split("random", 1000, seed=seed) for seed in (1, 1, 2))
  assert sizes(first) == sizes(other) == (700, 150, 150)
  np.testing.assert_array_equal(first["test"], again["test"])
  assert (first["test"] != other["test"]).any()


def test_by_user_all_rows_of_a_user_go_one_way():
  user = np.random.default_rng(0).choice([2, 3, 5, 7, 11, 13, 17, 19, 23, 29], 500)
  result = split("user", user_index=user, validation=0.2, test=0.3)
  parts = [set(user[mask]) for mask in result.values()]
  assert [len(part) for part in parts] == [5, 2, 3]
  assert len(set.union(*parts)) == 10


def test_by_column_takes_the_usual_words():
  labels = np.array(["train", "Valid", "dev", "TEST", "validation", "training", "val"])
  result = split("column", labels=labels)
  assert sizes(result) == (2, 4, 1)
  with pytest.raises(InputError, match=r"must be train.*\(first: row 1, value 'holdout'\)"):
    splits.codes(np.array(["train", "holdout"]))


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5), (0.1, float("nan"))])
def test_impossible_shares_are_refused(shares):
  for method in ("time", "user"):
    with pytest.raises(InputError, match="shares must be >= 0"):
      split(method, time=np.arange(10), validation=shares[0], test=shares[1])
  with pytest.raises(InputError, match="test must be of type float, got '10%'"):
    split("user", test="10%")


@pytest.mark.parametrize(
  ("method", "columns", "message"),
  [
    ("time", {"time": [0, 1, 1, 1, 2]}, "by time: validation has no rows, of 5; change"),
    ("time", {"time": [0, 0, 0, 0, 1]}, "of 5; log more: there are 2 different times"),
    ("auto", {"time": [0, 1, 2, 3, 4], "slate": [0] * 5}, "of 5; log more: there is 1 slate"),
    ("user", {"user_index": [3] * 5}, "by user: validation and test .* log more: there is 1 user"),
    ("random", {}, "at random: validation and test have no rows, of 5; change the shares"),
    ("column", {"labels": ["train", "val"]}, "by column: test has no rows, of 2; label rows"),
  ],
)
def test_a_part_without_rows_is_refused_with_the_remedy(method, columns, message):
  columns = {name: np.array(values) for name, values in columns.items()}
  shares = {"validation": 0.05, "test": 0.05 if method == "random" else 0.2}
  with pytest.raises(InputError, match=message):
    split(method, 5, **columns, **shares)


def test_a_part_that_is_not_wanted_may_be_empty():
  labels = np.array(["train", "validation"])
  assert sizes(split("column", 2, labels=labels, test=0)) == (1, 1, 0)


@pytest.mark.parametrize(
  ("name", "given", "expected"),
  [
    ("auto", {"time": np.arange(2), "labels": 1}, "column"),
    ("auto", {"time": np.arange(2), "labels": None}, "time"),
    ("auto", {"time": None, "labels": None}, "random"),
    ("user", {"time": None, "labels": None}, "user"),
  ],
)
def test_the_method_is_what_the_log_allows(name, given, expected):
  assert splits.method(name, **given) == expected


@pytest.mark.parametrize("name", ["time", "column", "nonsense"])
def test_a_method_that_the_log_does_not_allow_is_refused(name):
  with pytest.raises(InputError, match=name):
    splits.method(name, time=None, labels=None)


def leaks(train, validation, test, time, action=None):
  n = len(time)
  parts = zip(splits.NAMES, (train, validation, test), strict=True)
  return splits.find_leaks(
    {name: np.isin(np.arange(n), rows) for name, rows in parts},
    user_index=np.zeros(n, int),
    action=np.arange(n) if action is None else np.array(action),
    time=np.array(time),
  )


def test_training_rows_later_than_the_first_evaluated_row_are_counted():
  assert leaks([0, 1], [2], [3], [1, 2, 3, 4]) == (0, 0)
  assert leaks([0, 3], [1], [2], [1, 2, 3, 4]) == (1, 0)
  assert leaks([0, 1], [2], [], [5, 1, 3]) == (1, 0)


def test_rows_that_stand_in_two_splits_are_counted():
  # Row 2 repeats row 0, row 3 repeats row 1; rows 4 and 5 repeat each other, but in one split.
  assert leaks([0, 1], [2], [3, 4, 5], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 4, 4])[1] == 2
  assert leaks([0], [1], [2], [0, 1, 1], [9, 7, 7])[1] == 1  # validation and test
