"""MovieLens-1M as tensorflow-datasets prepares it: two directories of TFRecords."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_datasets as tfds

from tf_twostage.data.sets.movielens_files import AGES, DOWNLOAD, Tables
from tf_twostage.data.sets.raw_table import RawTable
from tf_twostage.errors import InputError

_BATCH = 5_000

_TEXT = tf.io.FixedLenFeature([], tf.string)
_WHOLE = tf.io.FixedLenFeature([], tf.int64)
_REAL = tf.io.FixedLenFeature([], tf.float32)
_MOVIE_RECORD = {
  "movie_id": _TEXT,
  "movie_title": _TEXT,
  "movie_genres": tf.io.RaggedFeature(tf.int64),
}
_RATING_RECORD = {
  "user_id": _TEXT,
  "movie_id": _TEXT,
  "user_rating": _REAL,
  "timestamp": _WHOLE,
  "user_gender": _WHOLE,
  "bucketized_user_age": _REAL,
  "user_occupation_text": _TEXT,
  "user_zip_code": _TEXT,
}


def read_records(ratings_place: pathlib.Path, movies_place: pathlib.Path) -> Tables:
  """Reads the prepared data set.

  Args:
    ratings_place: the directory of `movielens/1m-ratings`, with the users' features.
    movies_place: the directory of `movielens/1m-movies`.

  Raises:
    InputError: records are missing, damaged or malformed.
  """
  movies, genre_names = _read_columns(movies_place, _MOVIE_RECORD)
  ratings, _ = _read_columns(ratings_place, _RATING_RECORD)
  # tensorflow-datasets renames this genre to match the other MovieLens sizes.
  names = tf.constant(["Children's" if name == "Children" else name for name in genre_names])
  genres = tf.strings.reduce_join(tf.gather(names, movies["movie_genres"]), axis=-1, separator="|")
  movie_frame = pd.DataFrame(
    {
      "movie_id": movies["movie_id"].numpy(),
      "title": _decode(movies["movie_title"].numpy()),
      "genres": _decode(genres.numpy()),
    }
  )
  numbers = {
    "user_id": "user_id",
    "movie_id": "movie_id",
    "user_rating": "rating",
    "timestamp": "timestamp",
  }
  rating_frame = pd.DataFrame({name: ratings[key].numpy() for key, name in numbers.items()})
  # Every rating repeats its user's features: the first one speaks for the user.
  user_id, first = np.unique(rating_frame["user_id"], return_index=True)
  user = {key: column.numpy()[first] for key, column in ratings.items()}
  user_frame = pd.DataFrame(
    {
      "user_id": user_id,
      "gender": np.where(user["user_gender"] == 1, "M", "F"),
      "age": [AGES.get(int(code), str(code)) for code in user["bucketized_user_age"]],
      "occupation": _decode(user["user_occupation_text"]),
      "zip_code": _decode(user["user_zip_code"]),
    },
    index=first,
  )

  def table(frame: pd.DataFrame, place: pathlib.Path) -> RawTable:
    return RawTable(str(place), frame.rename_axis(index="row"), _delete(place))

  return Tables(
    users=table(user_frame, ratings_place),
    movies=table(movie_frame, movies_place),
    ratings=table(rating_frame, ratings_place),
  )


def _read_columns(place: pathlib.Path, record: Mapping) -> tuple[dict, list[str]]:
  """Returns the columns as tensors, ids as numbers, and the names that genre labels stand for.

  Records are parsed a batch at a time: the library's own reader, which parses them one by one,
  takes minutes for the million ratings.
  """

  def parse(records):
    columns = tf.io.parse_example(records, record)
    ids = {key: tf.strings.to_number(columns[key], tf.int64) for key in columns if "_id" in key}
    return columns | ids

  try:
    info = tfds.builder_from_directory(place).info
    split = info.splits["train"]
    files = [str(path) for path in split.filepaths]
    records = tf.data.TFRecordDataset(files).batch(_BATCH)
    batches = list(records.map(parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE))
    columns = {key: tf.concat([batch[key] for batch in batches], axis=0) for key in record}
    rows = len(columns["movie_id"])
    if rows != split.num_examples:
      raise ValueError(f"{rows} of {split.num_examples} rows")
    return columns, info.features["movie_genres"].feature.names
  except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
    raise InputError(f"{place}: damaged ({error}); {_delete(place)}") from error


def _delete(place: pathlib.Path) -> str:
  return f"delete {place} to have it prepared again, or {DOWNLOAD}"


def _decode(values: np.ndarray) -> list[str]:
  return [value.decode() for value in values]
