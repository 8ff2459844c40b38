"""TFRecord files of tf.train.Example, plain or gzipped, read in batches of records.

TensorFlow is imported on the first read: that takes seconds.
"""

from __future__ import annotations

import gzip
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tf_twostage.data.files.bad_rows import Broken, Chunk
from tf_twostage.errors import InputError, reason

_ROWS = 1 << 16
_FRAME = 16  # bytes of each record besides its payload: its length and two checksums
_TYPES = {"bytes_list": pa.binary(), "float_list": pa.float32(), "int64_list": pa.int64()}


def column_names(path: pathlib.Path) -> list[str]:
  """Returns the features of the first Example; none if the file has no records."""
  return list(_kinds(path))


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the records in order. A feature that a record lacks is null."""
  kinds = _kinds(path)
  wanted = {column: kinds.get(column, "bytes_list") for column in columns}
  row = 0
  for records in _records(path):
    yield _parse(path, records, wanted, row)
    row += len(records)


def _records(path: pathlib.Path, batch_size: int = _ROWS) -> Iterator[np.ndarray]:
  """Yields arrays [k] of records."""
  import tensorflow as tf

  dataset = tf.data.TFRecordDataset(str(path), "GZIP" if path.suffix == ".gz" else "")
  row = size = 0
  try:
    for records in dataset.batch(batch_size).as_numpy_iterator():
      yield records
      row += len(records)
      size += sum(map(len, records)) + _FRAME * len(records)
  except tf.errors.OpError:
    try:
      for _ in dataset.skip(row).as_numpy_iterator():  # find the damaged record in its batch
        row += 1
      raise
    except tf.errors.OpError as error:
      raise _damaged(path, row, reason(error)) from None
  # TensorFlow takes some truncated files for shorter ones, so compare what it has read.
  if path.suffix == ".gz":
    _check_gzip(path, row, size)
  elif size != path.stat().st_size:
    raise _damaged(path, row, "the file ends within a record")


def _check_gzip(path: pathlib.Path, row: int, size: int) -> None:
  """Raises InputError unless a gzip file is complete and holds `size` bytes.

  Its last four bytes are the size of its last member, modulo 2**32. Files of several members, and
  truncated ones, are read to the end.
  """
  with path.open("rb") as file:
    file.seek(-min(4, path.stat().st_size), 2)
    if size and int.from_bytes(file.read(), "little") == size % 2**32:
      return
  try:
    with gzip.open(path) as file:
      unpacked = sum(map(len, iter(lambda: file.read(1 << 20), b"")))
  except (EOFError, OSError, zlib.error) as error:
    raise _damaged(path, row, f"gzip: {error}") from None
  if unpacked != size:
    raise _damaged(path, row, "the file ends within a record")


def _damaged(path: pathlib.Path, row: int, what: str) -> InputError:
  return InputError(f"{path}: truncated or corrupt at row {row} ({what}); write the file again")


def _kinds(path: pathlib.Path) -> dict[str, str]:
  """Feature -> the kind of list that holds it, in the first record that is an Example."""
  found = (_features(record) for records in _records(path, 1) for record in records)
  return next((kinds for kinds in found if kinds is not None), {})


def _features(record: bytes) -> dict[str, str] | None:
  """Feature -> kind of a record, or None if it is not an Example."""
  import tensorflow as tf
  from google.protobuf.message import DecodeError

  try:
    features = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    return None
  found = {name: feature.WhichOneof("kind") for name, feature in features.items()}
  return {name: kind for name, kind in found.items() if kind}


def _parse(path: pathlib.Path, records: np.ndarray, wanted: Mapping[str, str], start: int) -> Chunk:
  import tensorflow as tf

  dtypes = {"bytes_list": tf.string, "float_list": tf.float32, "int64_list": tf.int64}
  spec = {name: tf.io.RaggedFeature(dtypes[kind]) for name, kind in wanted.items()}
  rows = start + np.arange(len(records))
  broken: list[Broken] = []
  try:
    parsed = tf.io.parse_example(tf.constant(records, tf.string), spec)
  # TensorFlow quotes a record that it cannot parse, and may fail to decode its bytes.
  except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
    problems = [_problem(record, wanted) for record in records]
    unnamed = np.flatnonzero([problem is None for problem in problems])
    for i in unnamed[~_can_parse(records[unnamed], spec)]:
      problems[i] = _no_example(records[i])
    found = zip(rows.tolist(), problems, strict=True)
    broken = [Broken(row, *problem) for row, problem in found if problem]
    whole = np.array([problem is None for problem in problems])
    rows = rows[whole]
    parsed = tf.io.parse_example(tf.constant(records[whole], tf.string), spec)
  lengths = {name: column.row_lengths().numpy() for name, column in parsed.items()}
  single = np.ones(len(rows), bool)
  for name, length in lengths.items():
    several = np.flatnonzero(single & (length > 1))
    single[several] = False
    rule = "must hold one value a row"
    broken += [Broken(int(rows[i]), name, rule, f"{length[i]} values") for i in several]
  arrays = {
    name: _array(column.flat_values.numpy(), lengths[name], single, _TYPES[wanted[name]])
    for name, column in parsed.items()
  }
  return Chunk(path, pa.table(arrays), rows[single], broken)


def _can_parse(records: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
  """Which records TensorFlow can parse, [k] bool; halves that it cannot are divided again."""
  import tensorflow as tf

  try:
    tf.io.parse_example(tf.constant(records, tf.string), spec)
  except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
    if len(records) == 1:
      return np.zeros(1, bool)
    return np.concatenate([_can_parse(half, spec) for half in np.array_split(records, 2)])
  return np.ones(len(records), bool)


def _array(
  values: np.ndarray, lengths: np.ndarray, rows: np.ndarray, kind: pa.DataType
) -> pa.Array:
  """The values of the chosen rows, null where a row has none."""
  first = np.cumsum(lengths) - lengths
  index = pa.array(first[rows], mask=lengths[rows] == 0)
  return pa.array(values, kind).take(index)


def _no_example(record: bytes) -> tuple[Any, str, str]:
  return None, "records must be tf.train.Example", f"{len(record)} bytes"


def _problem(record: bytes, wanted: Mapping[str, str]) -> tuple[Any, str, str] | None:
  """Why a record cannot be parsed: column, rule and value."""
  found = _features(record)
  if found is None:
    return _no_example(record)
  for name, kind in wanted.items():
    if name in found and found[name] != kind:
      return name, f"must be a {kind}, as in the first row, not a {found[name]}", found[name]
  return None
