"""Files of ratings: every layout gives the same ratings, and what cannot be read is refused."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from tests.data.sets.ratings_layouts import ml_1m, ml_10m, ml_25m, ml_100k, own, recbole, small
from tf_twostage.data import sets
from tf_twostage.data.files.bad_rows import BadRowsError
from tf_twostage.data.sets import RatingsData, layouts
from tf_twostage.errors import InputError

_, MOVIES, RATINGS = small()
LAYOUTS = (ml_100k, ml_1m, ml_10m, ml_25m, recbole, own)


def load(directory: pathlib.Path) -> RatingsData:
  return sets.load("ratings", str(directory))


def by_ids(data: RatingsData) -> list[tuple[str, str, float, float]]:
  user = np.asarray(data.schema.user_id.vocabulary)[data.user_index]
  item = np.asarray(data.schema.item_id.vocabulary)[data.item_index]
  return sorted(zip(user, item, data.rating.tolist(), data.time.tolist(), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_ratings_and_genres(layout, tmp_path):
  layout(tmp_path, small())
  data = load(tmp_path)
  assert by_ids(data) == sorted((u, m, float(r), float(t)) for u, m, r, t in RATINGS)
  (genres,) = (data.items[name] for name in ("genres", "class") if name in data.items)
  found = dict(zip(data.items["item_id"], genres, strict=True))
  assert {movie: sorted(filter(None, bag)) for movie, bag in found.items()} == {
    movie: sorted(text.split("|")) for movie, _, text in MOVIES
  }


@pytest.mark.parametrize("layout", [ml_100k, ml_1m, ml_10m, ml_25m])
def test_titles_of_movies_give_their_years(layout, tmp_path):
  layout(tmp_path, small())
  data = load(tmp_path)
  assert dict(zip(data.titles, data.items["year"], strict=True)) == {
    title: title[-5:-1] for _, title, _ in MOVIES
  }


def test_ages_of_100k_are_numbers_and_those_of_1m_labels(tmp_path):
  for layout, ages in ((ml_100k, [33.0] * 3), (ml_1m, ["Under 18", "56+", "25-34"])):
    directory = tmp_path / layout.__name__
    directory.mkdir()
    layout(directory, small())
    assert load(directory).users["age"].tolist() == ages


def test_movies_without_genres_have_an_empty_bag(tmp_path):
  ml_25m(tmp_path, small())
  with (tmp_path / "movies.csv").open("a") as file:
    file.write("7,Nothing,(no genres listed)\n")
  data = load(tmp_path)
  assert not any(data.items["genres"][-1])
  assert data.items["year"][-1] == ""


def test_a_file_of_orders_has_no_ratings(tmp_path):
  frame = pd.DataFrame([row[:2] for row in RATINGS], columns=["customer_id", "sku"])
  frame.to_csv(tmp_path / "orders.csv", index=False)
  data = load(tmp_path)
  assert data.rating is None
  assert len(data) == len(RATINGS)


def test_ratings_may_be_negative(tmp_path):
  frame = pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "rating": [-9.5, 3]})
  frame.to_csv(tmp_path / "ratings.csv", index=False)
  assert load(tmp_path).rating.tolist() == [-9.5, 3]


def _replace(file: str, old: str, new: str):
  def change(directory: pathlib.Path) -> None:
    path = directory / file
    text = path.read_text("latin-1")
    assert old in text
    path.write_text(text.replace(old, new), "latin-1")

  return change


def _without(file: str):
  return lambda directory: (directory / file).unlink()


@pytest.mark.parametrize(
  ("layout", "change", "message"),
  [
    (ml_100k, _replace("u.data", "9\t3", "9\tgood"), r"u.data: column 'rating' .*line 1, row 0"),
    (ml_100k, _replace("u.data", "9\t3", "9"), r"u.data: every line needs 4 fields .*line 1,"),
    (ml_100k, _replace("u.data", "10\t9\t", "10\t8\t"), r"'item_id' must name a known item.*'8'"),
    (ml_10m, _replace("ratings.dat", "3::10::", "3::"), r"ratings.dat: .*4 fields.*line 4"),
    (ml_25m, _replace("ratings.csv", "10,9,3", "10,9,x"), r"ratings.csv: column 'rating'.*line 2"),
    (
      recbole,
      _replace("ml.item", "9\t", "1\t"),
      r"ml.item: column 'item_id:token' must not repeat",
    ),
    (own, lambda d: (d / "orders.csv").touch(), "several files: orders.csv, ratings.parquet"),
    (own, _without("ratings.parquet"), "no ratings; it should hold"),
    (ml_100k, _without("u.item"), "u.item of MovieLens 100K is missing beside u.data, u.user"),
    (ml_10m, _without("movies.dat"), "movies.dat of MovieLens 10M is missing beside ratings.dat"),
    (ml_25m, _without("ratings.csv"), "ratings.csv of MovieLens 20M to 32M is missing beside mov"),
    (recbole, _without("ml.inter"), "ml.inter of RecBole is missing beside ml.item"),
    (ml_25m, _replace("ratings.csv", "rating", "points"), "missing column.*'rating'"),
  ],
)
def test_what_cannot_be_read_is_refused_with_the_place(layout, change, message, tmp_path):
  layout(tmp_path, small())
  change(tmp_path)
  with pytest.raises(InputError, match=message):
    load(tmp_path)


def test_bad_lines_can_be_left_out(tmp_path):
  ml_100k(tmp_path, small())
  _replace("u.data", "10\t9\t3", "10\t9\tgood")(tmp_path)
  with pytest.raises(BadRowsError):
    load(tmp_path)
  data = RatingsData.from_files(layouts.find(tmp_path), on_bad_rows="skip")
  assert len(data) == len(RATINGS) - 1
  assert "1 of 6 rows are bad and were left out" in data.notes


def test_a_file_whose_ratings_are_not_recognised_is_refused(tmp_path):
  pd.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "joy": [7, 9]}).to_csv(
    tmp_path / "ratings.csv", index=False
  )
  with pytest.raises(
    InputError, match="no column of 'user_id', 'item_id', 'joy' looks like reward"
  ):
    load(tmp_path)
