"""MovieLens-1M through TensorFlow Datasets, without its minutes of retries when offline."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
from collections.abc import Mapping

import numpy as np
import pandas as pd
import tensorflow as tf

from tf_twostage.datasets.movielens_files import AGES, ARCHIVE, DOWNLOAD, Tables, read_tables
from tf_twostage.datasets.raw_table import RawTable
from tf_twostage.errors import InputError

_VERSION = "0.1.1"
_CONFIGS = ("1m-ratings", "1m-movies")
_HOST = "files.grouplens.org"
_PROBE_SECONDS = 0.75
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


def read_or_prepare() -> Tables:
  """Reads the prepared data set, or a hand-downloaded zip, or else downloads and prepares it.

  All of it happens below tensorflow-datasets' data directory, which the environment variable
  TFDS_DATA_DIR names (by default ~/tensorflow_datasets).

  Raises:
    InputError: there are no data and the download host is out of reach, which takes less than a
      second to find out; or the data are damaged.
  """
  root = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
  manual = root / "downloads" / "manual"
  if not all((_directory(root, config) / "dataset_info.json").exists() for config in _CONFIGS):
    if (manual / ARCHIVE).exists():
      return read_tables(manual / ARCHIVE)
    remedy = f"{DOWNLOAD}, or put it in {manual}"
    if not _reachable():
      raise InputError(f"MovieLens-1M is not in {root} and {_HOST} is out of reach; {remedy}")
    _prepare(root, remedy)
  return _read_prepared(root)


def _directory(root: pathlib.Path, config: str) -> pathlib.Path:
  return root / "movielens" / config / _VERSION


def _reachable() -> bool:
  """Returns whether the download host accepts a connection, within `_PROBE_SECONDS`."""
  connected = threading.Event()

  def connect():
    with contextlib.suppress(OSError):
      socket.create_connection((_HOST, 443), timeout=_PROBE_SECONDS).close()
      connected.set()

  # A name lookup knows no time limit, so it is left behind in its thread when it hangs.
  probe = threading.Thread(target=connect, daemon=True)
  probe.start()
  probe.join(_PROBE_SECONDS)
  return connected.is_set()


def _prepare(root: pathlib.Path, remedy: str) -> None:
  import tensorflow_datasets as tfds

  try:
    for config in _CONFIGS:
      tfds.builder(f"movielens/{config}:{_VERSION}", data_dir=root).download_and_prepare()
  except Exception as error:  # of any library below tensorflow-datasets; the remedy is the same
    raise InputError(f"MovieLens-1M could not be prepared in {root} ({error}); {remedy}") from error


def _read_prepared(root: pathlib.Path) -> Tables:
  ratings_place, movies_place = (_directory(root, config) for config in _CONFIGS)
  movies, genre_names = _read_records(movies_place, _MOVIE_RECORD)
  ratings, _ = _read_records(ratings_place, _RATING_RECORD)
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


def _read_records(place: pathlib.Path, record: Mapping) -> tuple[dict, list[str]]:
  """Returns the columns as tensors, ids as numbers, and the names that genre labels stand for.

  Records are parsed a batch at a time: the library's own reader, which parses them one by one,
  takes minutes for the million ratings.
  """
  import tensorflow_datasets as tfds

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
