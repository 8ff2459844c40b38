"""MovieLens-1M: a million ratings with features of users, movies and time.

References: Harper, Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.
doi:10.1145/2827872
"""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data.schema import Bag, Categorical, Id, Schema, unit_range
from tf_twostage.data.sets.layouts import AGES, GENRES, OCCUPATIONS, YEAR, parse
from tf_twostage.data.sets.ratings import RatingsData
from tf_twostage.errors import InputError, require

ARCHIVE = "ml-1m.zip"
_URL = f"https://files.grouplens.org/datasets/movielens/{ARCHIVE}"
DOWNLOAD = f"download {ARCHIVE} from {_URL} and set data_dir to the directory that holds it"

_COLUMNS: dict[str, dict[str, type]] = {
  "users.dat": {"user_id": int, "gender": str, "age": int, "occupation": int, "zip_code": str},
  "movies.dat": {"movie_id": int, "title": str, "genres": str},
  "ratings.dat": {"user_id": int, "movie_id": int, "rating": int, "timestamp": int},
}
_GENDERS = ("F", "M")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Rows of a file, with what error messages need."""

  place: str  # the file
  # The index numbers rows as the file does; its name is what it counts.
  frame: pd.DataFrame
  remedy: str  # what to do when the file is wrong

  def require(self, valid: Collection[bool], column: str, rule: str) -> None:
    """Raises InputError naming the first invalid row, unless every row of [rows] is valid."""
    subject, index = f"{self.place}: column {column!r}", self.frame.index
    unit, values = str(index.name), self.frame[column].to_numpy()
    require(valid, subject, f"must {rule}", self.remedy, values, unit=unit, numbers=index)


class Tables(NamedTuple):
  """The three tables, the same from every source."""

  users: Table  # int `user_id`, str `gender` ("F" or "M"), `age`, `occupation`, `zip_code`
  movies: Table  # int `movie_id`, str `title`, `genres` (separated by "|")
  ratings: Table  # numbers `user_id`, `movie_id`, `rating`, `timestamp` (seconds)


def load_movielens_1m(data_dir: str | None = None) -> RatingsData:
  """Loads MovieLens-1M from its files or through TensorFlow Datasets.

  Every source gives the same arrays: users and movies in the order of their numeric ids, whether
  they have ratings or not, and ratings in the order of user, time and movie. Data that TensorFlow
  Datasets prepared hold only users with ratings; in the published data these are all users.

  Args:
    data_dir: a directory with users.dat, movies.dat and ratings.dat, or with a subdirectory ml-1m
      that holds them, or with ml-1m.zip; or the path of that zip. None: TensorFlow Datasets
      provides the data, from its data directory or by a download.

  Raises:
    InputError: the data are missing or wrong.
  """
  if data_dir is None:
    from tf_twostage.data.sets import movielens_tfds

    tables = movielens_tfds.read_or_prepare()
  else:
    tables = read_files(pathlib.Path(data_dir).expanduser())
  _check(tables)

  users = tables.users.frame.sort_values("user_id")
  movies = tables.movies.frame.sort_values("movie_id")
  genres = movies["genres"].str.split("|", expand=True).fillna("")
  years = movies["title"].str.extract(YEAR, expand=False)
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
      Bag("genres", GENRES, max_length=genres.shape[1]),
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


def read_files(source: pathlib.Path) -> Tables:
  """Reads the three files of a directory or a zip and checks their form, not yet their values."""
  try:
    if source.is_dir() and not any((source / name).exists() for name in _COLUMNS):
      inside = [path for name in ("ml-1m", ARCHIVE) if (path := source / name).exists()]
      if not inside:
        raise InputError(f"{source}: holds no {', '.join(_COLUMNS)} and no {ARCHIVE}; {DOWNLOAD}")
      source = inside[0]
    folder: Any = source if source.is_dir() else zipfile.Path(source)
    if not source.is_dir() and (folder / "ml-1m/").exists():
      folder = folder / "ml-1m/"
    missing = [name for name in _COLUMNS if not (folder / name).exists()]
    if missing:
      raise InputError(f"{source}: missing {', '.join(missing)}; {DOWNLOAD}")
    files = {str(folder / name): (folder / name).read_bytes() for name in _COLUMNS}
  # RuntimeError includes encrypted members and unknown compressions.
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
    raise InputError(f"{source}: not an intact zip file ({error}); {DOWNLOAD}") from error
  except OSError as error:
    place = error.filename or source
    raise InputError(f"{place}: cannot be read ({error.strerror}); {DOWNLOAD}") from error
  tables = Tables(*map(_parse, files.values(), _COLUMNS.values(), files))
  # A code without a label stays as it is; the check of the values reports it.
  users = tables.users.frame
  users["age"] = [AGES.get(code, str(code)) for code in users["age"]]
  names = dict(enumerate(OCCUPATIONS))
  users["occupation"] = [names.get(code, str(code)) for code in users["occupation"]]
  return tables


def _parse(data: bytes, columns: Mapping[str, type], place: str) -> Table:
  """Parses lines of the form `a::b::c` in latin-1, without header or quotes."""
  remedy = f"use the files of {_URL} as they are"
  table, broken = parse(data, [*columns], "::", "latin-1", place, remedy)
  if broken:
    raise InputError(
      f"{place}: {broken[0].rule}; {len(broken)} of {len(table) + len(broken)} lines differ (first:"
      f" line {broken[0].row + 1} has {broken[0].value}); {remedy}"
    )
  texts = [column.cast(pa.string()) for column in table.columns]
  table = pa.table(texts, names=table.column_names)
  lines = pd.RangeIndex(1, len(table) + 1, name="line")
  for place_of, (name, kind) in enumerate(columns.items()):
    if kind is int:
      valid = pc.match_substring_regex(table[name], "^[0-9]{1,18}$")
      if not pc.all(valid).as_py():
        frame = table.select([name]).to_pandas().set_index(lines)
        Table(place, frame, remedy).require(valid.to_pylist(), name, "be a whole number")
      table = table.set_column(place_of, name, table[name].cast(pa.int64()))
  return Table(place, table.to_pandas().set_index(lines), remedy)


def _check(tables: Tables) -> None:
  """Raises InputError unless all values are valid."""
  users, movies, ratings = (table.frame for table in tables)
  listed = "be one of the values in the data set's README"

  tables.users.require(~users["user_id"].duplicated(), "user_id", "be unique")
  known = (("gender", _GENDERS), ("age", AGES.values()), ("occupation", OCCUPATIONS))
  for column, values in known:
    tables.users.require(users[column].isin(list(values)), column, listed)
  tables.users.require(users["zip_code"] != "", "zip_code", "not be empty")

  tables.movies.require(~movies["movie_id"].duplicated(), "movie_id", "be unique")
  years = movies["title"].str.extract(YEAR, expand=False)
  tables.movies.require(years.notna(), "title", "end in a year, as (1995)")
  genre = "|".join(GENRES)
  valid = movies["genres"].str.fullmatch(rf"(?:{genre})(?:\|(?:{genre}))*")
  tables.movies.require(valid, "genres", listed)

  tables.ratings.require(ratings["rating"].isin(range(1, 6)), "rating", "be 1, 2, 3, 4 or 5")
  for column, owner in (("user_id", tables.users), ("movie_id", tables.movies)):
    present = ratings[column].isin(owner.frame[column])
    tables.ratings.require(present, column, f"occur in {owner.place}")
  repeated = ratings.duplicated(["user_id", "movie_id"])
  tables.ratings.require(~repeated, "movie_id", "be unique for a user")


def _strings(values: pd.Series | pd.DataFrame) -> np.ndarray:
  """Returns a NumPy unicode array, as narrow as its values allow."""
  return np.array(values.astype(str).to_numpy().tolist(), dtype=str)
