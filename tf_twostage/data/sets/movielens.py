"""MovieLens-1M: a million ratings with features of users, movies and time.

References: Harper, Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.
doi:10.1145/2827872
"""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd

from tf_twostage.data.schema import Bag, Categorical, Id, Schema
from tf_twostage.data.sets import movielens_files, movielens_tfds
from tf_twostage.data.sets.movielens_files import AGES, OCCUPATIONS
from tf_twostage.data.sets.ratings import RatingsData, unit_range
from tf_twostage.data.sets.raw_table import RawTable

_GENDERS = ("F", "M")
_GENRES = (
  "Action",
  "Adventure",
  "Animation",
  "Children's",
  "Comedy",
  "Crime",
  "Documentary",
  "Drama",
  "Fantasy",
  "Film-Noir",
  "Horror",
  "Musical",
  "Mystery",
  "Romance",
  "Sci-Fi",
  "Thriller",
  "War",
  "Western",
)
_YEAR = r"\((\d{4})\)\s*$"


def load_movielens_1m(data_dir: str | None = None) -> RatingsData:
  """Loads MovieLens-1M from its files or through tensorflow-datasets.

  Users and movies are ordered by their numeric ids and kept whether they have ratings or not
  (the prepared tensorflow-datasets form holds only users who rated, which in the published data
  are all). Ratings are ordered by user, time and movie. So every source gives the same arrays.

  Args:
    data_dir: a directory that holds users.dat, movies.dat and ratings.dat, or a subdirectory
      ml-1m with them, or ml-1m.zip; or the path of that zip. By default tensorflow-datasets
      provides the data: prepared earlier, from downloads/manual/ml-1m.zip in its data directory,
      or by a download.

  Returns:
    The data: 6,040 users, 3,883 movies, 1,000,209 ratings of 1 to 5 stars.

  Raises:
    InputError: the data are missing or wrong; the message says where, and what to do.
  """
  if data_dir is None:
    tables = movielens_tfds.read_or_prepare()
  else:
    tables = movielens_files.read_tables(pathlib.Path(data_dir).expanduser())
  _check(tables)

  users = tables.users.frame.sort_values("user_id")
  movies = tables.movies.frame.sort_values("movie_id")
  genres = movies["genres"].str.split("|", expand=True).fillna("")
  years = movies["title"].str.extract(_YEAR, expand=False)
  ratings = tables.ratings.frame.sort_values(["user_id", "timestamp", "movie_id"])
  timestamp = ratings["timestamp"].to_numpy(np.float64)

  schema = Schema(
    user=(
      Id("user_id", tuple(users["user_id"].astype(str))),
      Categorical("gender", _GENDERS),
      Categorical("age", tuple(AGES.values())),
      Categorical("occupation", OCCUPATIONS),
      Categorical("zip_code", tuple(sorted(set(users["zip_code"])))),
    ),
    item=(
      Id("movie_id", tuple(movies["movie_id"].astype(str))),
      Categorical("year", tuple(sorted(set(years)))),
      Bag("genres", _GENRES, max_length=genres.shape[1]),
    ),
    context=(unit_range("timestamp", timestamp),),
  )
  return RatingsData(
    name="movielens_1m",
    schema=schema,
    users={feature.name: _strings(users[feature.name]) for feature in schema.user},
    items={
      "movie_id": _strings(movies["movie_id"]),
      "year": _strings(years),
      "genres": _strings(genres),
    },
    titles=_strings(movies["title"]),
    user_index=pd.Index(users["user_id"]).get_indexer(ratings["user_id"]).astype(np.int32),
    item_index=pd.Index(movies["movie_id"]).get_indexer(ratings["movie_id"]).astype(np.int32),
    rating=ratings["rating"].to_numpy(np.float32),
    context={"timestamp": timestamp},
  )


def _check(tables: movielens_files.Tables) -> None:
  """Raises InputError unless the values mean something."""
  users, movies, ratings = (table.frame for table in tables)
  known = "be one of those that the data set's README lists"
  genre = "|".join(_GENRES)

  _require_unique(tables.users, "user_id")
  for column, values in (("gender", _GENDERS), ("age", AGES.values()), ("occupation", OCCUPATIONS)):
    tables.users.require(users[column].isin(list(values)), column, known)
  tables.users.require(users["zip_code"] != "", "zip_code", "not be empty")

  _require_unique(tables.movies, "movie_id")
  tables.movies.require(
    movies["title"].str.extract(_YEAR, expand=False).notna(), "title", "end in a year, as (1995)"
  )
  tables.movies.require(
    movies["genres"].str.fullmatch(rf"(?:{genre})(?:\|(?:{genre}))*"), "genres", known
  )

  stars = (ratings["rating"] >= 1) & (ratings["rating"] <= 5) & (ratings["rating"] % 1 == 0)
  tables.ratings.require(stars, "rating", "be 1, 2, 3, 4 or 5")
  for column, owner in (("user_id", tables.users), ("movie_id", tables.movies)):
    tables.ratings.require(
      ratings[column].isin(owner.frame[column]), column, f"stand in {owner.place}"
    )
  tables.ratings.require(
    ~ratings.duplicated(["user_id", "movie_id"]), "movie_id", "be unique for a user"
  )


def _require_unique(table: RawTable, column: str) -> None:
  table.require(~table.frame[column].duplicated(), column, "be unique")


def _strings(values: pd.Series | pd.DataFrame) -> np.ndarray:
  """Returns a NumPy unicode array, as narrow as its values allow."""
  return np.array(values.astype(str).to_numpy().tolist(), dtype=str)
