"""Native logs: checked rows in TFRecord shards, in a directory that is complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.locate import DESCRIPTION, locate
from tf_twostage.data.files.reader import read
from tf_twostage.data.log_schema import LogSchema, load_schema
from tf_twostage.errors import InputError
from tf_twostage.workspace import atomic_directory

if TYPE_CHECKING:
  import tensorflow as tf

COLUMNS = {
  "user_id": "raw id of the user, as in the users' table",
  "item_id": "raw id of the item shown, as in the items' table",
  "propensity": "probability that the behavior policy gave the item, in (0, 1]",
  "reward": "what came of it, >= 0; usually 0 or 1",
  "position": "optional: 0-based draw or slot of the item on its slate",
  "time": "optional: when it was shown, in seconds if the log had dates",
  "ranker_score": "optional: score of the ranker in production",
  "split": "optional: train, validation or test",
}
_SCHEMA = "schema.yaml"
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


def convert(
  log: str | os.PathLike | Sequence[str | os.PathLike],
  directory: str | os.PathLike,
  schema: str | os.PathLike | LogSchema,
  *,
  num_shards: int = 4,
  compress: bool = False,
  user_features: bool = True,
  on_bad_rows: str = "fail",
  progress: Callable[[int, int], object] = lambda rows, expected: None,
) -> tuple[int, BadRows]:
  """Checks a log and writes its good rows, in order, as a native log with its schema.

  The directory appears when it is complete. One chunk of rows is in memory at a time.

  Args:
    log: what `locate` takes.
    directory: where `log-00000-of-00004.tfrecord`, ..., `log.json` and `schema.yaml` go.
    schema: a `LogSchema`, its file, or the name of a preset.
    num_shards: number of TFRecord files.
    compress: whether to gzip them.
    user_features: whether the log holds them; otherwise they have a file of their own.
    on_bad_rows: "fail", or "skip" to leave bad rows out.
    progress: called after each chunk with its number of rows and the expected total.

  Returns:
    The number of rows written, and the bad rows.

  Raises:
    InputError: files cannot be read, columns are missing, or the directory is in other use.
    BadRowsError: there are bad rows that may not be skipped, or no others.
  """
  schema = load_schema(schema)
  files = locate(log)
  bad_rows = BadRows()

  def tables() -> Iterator[pa.Table]:
    for chunk in read(files, schema, bad_rows, user_features=user_features):
      yield chunk.table
      progress(chunk.table.num_rows, expected)

  with new_log(directory) as new:
    expected = files.count_rows()
    written = write(tables(), new, rows=expected, num_shards=num_shards, compress=compress)
    bad_rows.settle(on_bad_rows)
    schema.native(user_features=user_features).to_file(new / _SCHEMA)
  return written, bad_rows


def names(num_shards: int, *, compress: bool = False) -> list[str]:
  """Returns the file names of a log's shards, in order."""
  end = ".tfrecord.gz" if compress else ".tfrecord"
  return [f"log-{shard:05d}-of-{num_shards:05d}{end}" for shard in range(num_shards)]


def write(
  tables: Iterable[pa.Table],
  directory: pathlib.Path,
  *,
  rows: int,
  num_shards: int,
  compress: bool = False,
) -> int:
  """Writes rows in order, and `log.json`, which describes them.

  Args:
    tables: columns under their names in the log, without nulls.
    directory: an empty directory.
    rows: expected number of rows: shard k of S takes rows k/S to (k+1)/S of them.
    num_shards: number of files, S.
    compress: whether to gzip them.

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
    for part in _parts(tables):
      columns = {field.name: str(field.type) for field in part.schema}
      records = serialize({name: part[name].to_numpy() for name in columns}).numpy()
      # The last shard takes the rest if there are more rows than expected.
      shares = np.split(records, np.clip(ends - written, 0, len(records)))
      for writer, share in zip(writers, shares, strict=True):
        for record in share:
          writer.write(record)
      written += len(part)
  description = {
    "rows": written,
    "columns": {
      name: {
        "dtype": _DTYPES.get(kind, kind),
        "meaning": COLUMNS.get(name, "feature of the schema"),
      }
      for name, kind in columns.items()
    },
  }
  text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
  (directory / DESCRIPTION).write_text(text, encoding="utf-8")
  return written


def _parts(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
  for table in tables:
    for start in range(0, table.num_rows, _ROWS):
      yield table.slice(start, _ROWS)


def serialize(columns: Mapping[str, np.ndarray]) -> tf.Tensor:
  """Returns the rows as serialized tf.train.Example, [n] string.

  Columns are encoded as a whole, from the inner messages to the outer one: 230,000 rows of six
  columns a second, where a tf.train.Example for each row gives 54,000.
  """
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
def new_log(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty directory that replaces `directory` once the block has filled it.

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
