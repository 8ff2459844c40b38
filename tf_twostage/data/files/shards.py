"""Native shards: checked rows as TFRecord files, in a directory that is complete or not there."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tf_twostage.data.files.find import DESCRIPTION
from tf_twostage.errors import InputError
from tf_twostage.workspace import atomic_directory

if TYPE_CHECKING:
  import tensorflow as tf

COLUMNS = {
  "user_id": ("string", "raw id of the user, as in the users' table"),
  "item_id": ("string", "raw id of the item shown, as in the items' table"),
  "propensity": ("float32", "probability that the behavior policy gave the item, in (0, 1]"),
  "reward": ("float32", "what came of it, >= 0; usually 0 or 1"),
  "position": ("int32", "optional: 0-based draw or slot of the item on its slate"),
  "time": ("float64", "optional: when it was shown, in seconds if the log had dates"),
  "ranker_score": ("float32", "optional: score of the ranker in production"),
  "split": ("string", "optional: train, validation or test"),
}
SCHEMA = "schema.yaml"
_ROWS = 1 << 16  # serialized at a time
_OURS = re.compile(r"log-\d{5}-of-\d{5}\.tfrecord(\.gz)?|log\.(csv|parquet|json)|schema\.yaml")
_TEXT = ("bytes_list", "BytesList", object)
_DTYPES = {"float": "float32", "double": "float64"}  # as pyarrow calls them -> as NumPy does
_EXAMPLE_LISTS = {  # by the kind of a NumPy dtype
  "O": _TEXT,
  "U": _TEXT,
  "f": ("float_list", "FloatList", np.float32),
  "i": ("int64_list", "Int64List", np.int64),
}


def names(num_shards: int, *, compress: bool = False) -> list[str]:
  """File names of the shards of a log, in order."""
  end = ".tfrecord.gz" if compress else ".tfrecord"
  return [f"log-{shard:05d}-of-{num_shards:05d}{end}" for shard in range(num_shards)]


def write(
  tables: Iterable[pa.Table],
  directory: pathlib.Path,
  *,
  rows: int,
  num_shards: int,
  compress: bool = False,
  progress: Callable[[int], object] = lambda rows: None,
) -> int:
  """Writes rows in order, and `log.json` that describes them.

  Args:
    tables: columns under their names in the log, none null.
    directory: an empty directory.
    rows: how many there will be, about: shard k of S takes rows k/S to (k+1)/S of them.
    num_shards: number of files, S.
    compress: whether to gzip them.
    progress: told the number of rows after each part that is written.

  Returns:
    The number of rows.

  Raises:
    InputError: `num_shards` is less than 1.
  """
  import tensorflow as tf

  if num_shards < 1:
    raise InputError(f"num_shards must be at least 1, got {num_shards}")
  ends = np.array([-(-rows * shard // num_shards) for shard in range(1, num_shards)], int)
  options = tf.io.TFRecordOptions(compression_type="GZIP" if compress else "")
  written = 0
  columns: dict[str, str] = {}
  with contextlib.ExitStack() as open_files:
    writers = [
      open_files.enter_context(tf.io.TFRecordWriter(str(directory / name), options))
      for name in names(num_shards, compress=compress)
    ]
    for table in _slices(tables):
      columns = {field.name: str(field.type) for field in table.schema}
      records = serialize({name: table[name].to_numpy() for name in columns}).numpy()
      # The last shard takes what is left, should there be more rows than was thought.
      parts = np.split(records, np.clip(ends - written, 0, len(records)))
      for writer, part in zip(writers, parts, strict=True):
        for record in part:
          writer.write(record)
      written += len(table)
      progress(len(table))
  description = {
    "rows": written,
    "columns": {
      name: {
        "dtype": _DTYPES.get(kind, kind),
        "meaning": COLUMNS[name][1] if name in COLUMNS else "feature of the schema",
      }
      for name, kind in columns.items()
    },
  }
  text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
  (directory / DESCRIPTION).write_text(text, encoding="utf-8")
  return written


def _slices(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
  """The same rows in parts that take little memory as records."""
  for table in tables:
    for start in range(0, table.num_rows, _ROWS):
      yield table.slice(start, _ROWS)


def serialize(columns: Mapping[str, np.ndarray]) -> tf.Tensor:
  """The rows as serialized tf.train.Example, [n] string: whole columns, from the inside out."""
  import tensorflow as tf

  n = len(next(iter(columns.values())))

  def encode(message, **fields):
    sizes = tf.ones([n, len(fields)], tf.int32)
    values = [value[:, None] for value in fields.values()]
    return tf.io.encode_proto(sizes, values, list(fields), f"tensorflow.{message}")

  def entry(name, values):
    if values.dtype == np.float64:  # an Example has no float64; decimal text keeps every digit
      values = values.astype(str)
    kind, message, dtype = _EXAMPLE_LISTS[values.dtype.kind]
    feature = encode("Feature", **{kind: encode(message, value=values.astype(dtype))})
    return encode("Features.FeatureEntry", key=tf.fill([n], name), value=feature)

  entries = tf.stack([entry(name, values) for name, values in columns.items()], axis=1)
  sizes = tf.fill([n, 1], len(columns))
  features = tf.io.encode_proto(sizes, [entries], ["feature"], "tensorflow.Features")
  return encode("Example", features=features)


@contextlib.contextmanager
def written_aside(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a new sibling of `directory` that takes its place once it is complete.

  Raises:
    InputError: the directory holds anything but an earlier log, or cannot be written.
  """
  directory = pathlib.Path(directory).resolve()
  with contextlib.ExitStack() as stack:
    try:
      if directory.exists() and not all(map(_OURS.fullmatch, os.listdir(directory))):
        raise InputError(
          f"{directory}: holds something other than a bandit log; name a new directory"
        )
      aside = stack.enter_context(atomic_directory(directory))
    except OSError as error:
      raise InputError(
        f"{directory}: cannot be written ({error.strerror}); name a directory that can"
      ) from None
    yield aside
