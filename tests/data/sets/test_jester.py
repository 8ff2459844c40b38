"""Jester's files: what is read of them, and which are refused."""

import numpy as np
import pytest

from tests.data.sets import jester_files as files
from tf_twostage.data import sets
from tf_twostage.errors import InputError

GAUGE = [4, 6, 7, 12, 14, 15, 16, 17, 18, 19]  # rows of a list of 100 jokes


def test_ratings_of_all_people_are_read_and_the_complete_ones_are_last(tmp_path):
  full, others = files.write(tmp_path)
  data = sets.load("jester", str(tmp_path))
  assert (data.num_users, data.num_items) == (files.OTHERS + files.FULL, 90)
  assert data.complete_users == files.FULL
  read = np.full((data.num_users, 90), np.nan)
  read[data.user_index, data.item_index] = data.rating
  np.testing.assert_array_equal(read[files.OTHERS :], np.delete(full, GAUGE, axis=1))
  np.testing.assert_array_equal(read[: files.OTHERS], np.delete(others, GAUGE, axis=1))


def test_the_gauge_set_describes_people_and_is_not_recommended(tmp_path):
  full, others = files.write(tmp_path)
  data = sets.load("jester", str(tmp_path))
  expected = np.nan_to_num(np.concatenate([others, full])[:, GAUGE])
  names = [f"joke_{row + 1}" for row in GAUGE]
  np.testing.assert_allclose(np.transpose([data.users[name] for name in names]), expected)
  assert not {str(row + 1) for row in GAUGE} & set(data.items["joke"])
  assert [feature.name for feature in data.schema.user_inputs] == names  # and not the person's id


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"full_ratings.npz": None}, "missing full_ratings.npz; data_dir holds"),
    ({"full_ratings.npz": b"PK\3\4"}, "full_ratings.npz: not a readable .npz"),
    ({"ratings": np.zeros((3, 99))}, r"ratings has shape \(3, 99\), expected \(None, 100\)"),
    ({"ratings": np.full((3, 100), 11.0)}, r"full_ratings.npz: ratings must be in \[-10, 10\]"),
    ({"ratings": np.full((3, 100), np.nan)}, "ratings must be finite; 3 of 3 rows"),
    ({"user": np.zeros(2, int)}, "user, item and rating have 2, "),
    ({"user": np.zeros(files.RATINGS)}, "user is float64, expected int64"),
    ({"item": np.full(files.RATINGS, 100)}, r"item must be in \[0, 100\)"),
    ({"item": np.zeros(files.RATINGS, int)}, "item must be rated once by a person"),
    ({"rating": np.full(files.RATINGS, -10.5)}, r"other_ratings.npz: ratings must be in \[-10"),
  ],
)
def test_wrong_files_are_refused(tmp_path, change, message):
  files.write(tmp_path, **change)
  with pytest.raises(InputError, match=message):
    sets.load("jester", str(tmp_path))


def test_a_directory_must_be_named():
  with pytest.raises(InputError, match="'jester' is read from files, and data_dir is not set"):
    sets.load("jester")


def test_the_published_people_are_found(test_data):
  if not (test_data / "jester").is_dir():
    pytest.skip("TF_TWOSTAGE_TEST_DATA holds no jester/")
  data = sets.load("jester", str(test_data / "jester"))
  assert (data.num_users, data.complete_users, data.num_items) == (5000, 1473, 90)
  gauge = np.array([data.users[f"joke_{row + 1}"] for row in GAUGE])
  assert (gauge != 0).mean() > 0.99  # everybody was shown the gauge set
