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
from tf_twostage.workspace import LOCK, atomic_directory, locked

if TYPE_CHECKING:
  import tensorflow as tf

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
  progress: Callable[[int, int], object] = lambda rows, total: None,
) -> tuple[int, BadRows]:
  """Checks a log, then writes its good rows, in order, as a native log with its schema.

  Returns the number of rows and the bad rows. `progress` gets the rows of each chunk that is
  written, and of all.
  """
  schema = load_schema(schema)
  files = locate(log)

  def tables(bad_rows: BadRows) -> Iterator[pa.Table]:
    for chunk in read(files, schema, bad_rows, user_features=user_features):
      yield chunk.table

  with new_log(directory) as new:
    bad_rows = BadRows()
    rows = sum(map(len, tables(bad_rows)))
    bad_rows.settle(on_bad_rows)
    written = write(tables(BadRows()), new, rows=rows, num_shards=num_shards, compress=compress)
    for count in written:
      progress(count, rows)
    schema.native(user_features=user_features).to_file(new / _SCHEMA)
  return rows, bad_rows


def names(num_shards: int, *, compress: bool = False) -> list[str]:
  """The file names of a log's shards, in order."""
  end = ".tfrecord.gz" if compress else ".tfrecord"
  return [f"log-{shard:05d}-of-{num_shards:05d}{end}" for shard in range(num_shards)]


def write(
  tables: Iterable[pa.Table],
  directory: pathlib.Path,
  *,
  rows: int,
  num_shards: int,
  compress: bool = False,
) -> Iterator[int]:
  """Writes rows in order, and `log.json`, which describes them; yields the rows of each table.

  Shard k of S takes rows k/S to (k+1)/S of the `rows` there are.
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
    for table in tables:
      columns = {c.name: _DTYPES.get(str(c.type), str(c.type)) for c in table.schema}
      for start in range(0, len(table), _ROWS):
        part = table.slice(start, _ROWS)
        records = serialize({name: part[name].to_numpy() for name in columns}).numpy()
        shares = np.split(records, np.clip(ends - written, 0, len(records)))
        for writer, share in zip(writers, shares, strict=True):
          for record in share:
            writer.write(record)
        written += len(part)
      yield len(table)
  description = json.dumps({"rows": written, "columns": columns}, indent=2, ensure_ascii=False)
  (directory / DESCRIPTION).write_text(description + "\n", encoding="utf-8")


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

  Other processes that write the same log wait.
  """
  directory = pathlib.Path(directory).resolve()
  with contextlib.ExitStack() as stack:
    try:
      if directory.exists() and not all(map(_OURS.fullmatch, os.listdir(directory))):
        raise InputError(
          f"{directory}: holds something other than a bandit log; name a new directory"
        )
      stack.enter_context(locked(directory.with_name(f".{directory.name}{LOCK}")))
      aside = stack.enter_context(atomic_directory(directory))
    except OSError as error:
      raise InputError(
        f"{directory}: cannot be written ({error.strerror}); name a directory that can"
      ) from None
    yield aside
