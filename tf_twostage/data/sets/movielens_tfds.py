"""MovieLens-1M through TensorFlow Datasets, without its minutes of retries when offline."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading

import numpy as np
import pandas as pd

from tf_twostage.data.sets.layouts import AGES
from tf_twostage.data.sets.movielens import ARCHIVE, DOWNLOAD, Table, Tables, read_files
from tf_twostage.errors import InputError

_VERSION = "0.1.1"
_HOST = "files.grouplens.org"
_PROBE_SECONDS = 0.75
_BATCH = 5_000
# By configuration: how a record names our columns, and their types.
_RECORDS: dict[str, dict[str, tuple[str, str | None]]] = {
  "1m-ratings": {
    "user_id": ("user_id", "string"),
    "movie_id": ("movie_id", "string"),
    "rating": ("user_rating", "float32"),
    "timestamp": ("timestamp", "int64"),
    "gender": ("user_gender", "int64"),
    "age": ("bucketized_user_age", "float32"),
    "occupation": ("user_occupation_text", "string"),
    "zip_code": ("user_zip_code", "string"),
  },
  "1m-movies": {
    "movie_id": ("movie_id", "string"),
    "title": ("movie_title", "string"),
    "genres": ("movie_genres", None),  # a list of labels
  },
}


def read_or_prepare() -> Tables:
  """Reads prepared data, or a zip downloaded by hand; otherwise downloads and prepares the data.

  All of this happens below the data directory of TensorFlow Datasets: the environment variable
  TFDS_DATA_DIR, by default ~/tensorflow_datasets.
  """
  root = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
  manual = root / "downloads" / "manual"
  prepared = {config: root / "movielens" / config / _VERSION for config in _RECORDS}
  if not all((directory / "dataset_info.json").exists() for directory in prepared.values()):
    if (manual / ARCHIVE).exists():
      return read_files(manual / ARCHIVE)
    remedy = f"{DOWNLOAD}, or put it in {manual}"
    if not _reachable():
      raise InputError(f"MovieLens-1M is not in {root} and {_HOST} is out of reach; {remedy}")
    _prepare(root, remedy)
  ratings, movies = (_read(place, _RECORDS[config]) for config, place in prepared.items())
  # Every rating repeats the features of its user.
  users = ratings.frame.drop_duplicates("user_id").drop(columns=["movie_id", "rating", "timestamp"])
  users["gender"] = np.where(users["gender"] == 1, "M", "F")
  users["age"] = [AGES.get(int(code), str(code)) for code in users["age"]]
  ratings.frame.drop(columns=["gender", "age", "occupation", "zip_code"], inplace=True)
  return Tables(Table(ratings.place, users, ratings.remedy), movies, ratings)


def _read(place: pathlib.Path, record: dict[str, tuple[str, str | None]]) -> Table:
  """Reads prepared records, ids as numbers and lists of labels as text.

  Records are parsed in batches: the reader of TensorFlow Datasets parses them one by one, which
  takes minutes for a million ratings.
  """
  import tensorflow as tf
  import tensorflow_datasets as tfds

  remedy = f"delete {place} to have it prepared again, or {DOWNLOAD}"
  features = {
    key: tf.io.RaggedFeature(tf.int64)
    if dtype is None
    else tf.io.FixedLenFeature([], tf.as_dtype(dtype))
    for key, dtype in record.values()
  }
  try:
    info = tfds.builder_from_directory(place).info
    split = info.splits["train"]
    # TensorFlow Datasets renames this genre.
    renamed = {"Children": "Children's"}
    labels = info.features["movie_genres"].feature.names
    genres = tf.constant([renamed.get(label, label) for label in labels])

    def parse(records):
      parsed = tf.io.parse_example(records, features)
      row = {name: parsed[key] for name, (key, _) in record.items()}
      row |= {n: tf.strings.to_number(row[n], tf.int64) for n in row if n.endswith("_id")}
      if "genres" in row:
        names = tf.gather(genres, row["genres"])
        row["genres"] = tf.strings.reduce_join(names, axis=-1, separator="|")
      return row

    records = tf.data.TFRecordDataset([str(path) for path in split.filepaths]).batch(_BATCH)
    batches = list(records.map(parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE))
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in record}
    rows = len(columns["movie_id"])
    if rows != split.num_examples:
      raise ValueError(f"{rows} of {split.num_examples} rows")
  except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
    raise InputError(f"{place}: damaged ({error}); {remedy}") from error
  frame = pd.DataFrame(
    {n: [v.decode() for v in c] if c.dtype == object else c for n, c in columns.items()}
  )
  return Table(str(place), frame.rename_axis(index="row"), remedy)


def _reachable() -> bool:
  """Returns whether the download host accepts a connection within `_PROBE_SECONDS`."""
  connected = threading.Event()

  def connect() -> None:
    with contextlib.suppress(OSError):
      socket.create_connection((_HOST, 443), timeout=_PROBE_SECONDS).close()
      connected.set()

  # A name lookup has no time limit, so it runs in a thread that may be left hanging.
  probe = threading.Thread(target=connect, daemon=True)
  probe.start()
  probe.join(_PROBE_SECONDS)
  return connected.is_set()


def _prepare(root: pathlib.Path, remedy: str) -> None:
  import tensorflow_datasets as tfds

  try:
    for config in _RECORDS:
      tfds.builder(f"movielens/{config}:{_VERSION}", data_dir=root).download_and_prepare()
  except Exception as error:  # any library below TensorFlow Datasets may fail; same remedy
    raise InputError(f"MovieLens-1M could not be prepared in {root} ({error}); {remedy}") from error
