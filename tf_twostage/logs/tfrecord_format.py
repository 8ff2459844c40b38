"""TFRecord files of tf.train.Example, plain or gzipped, read a batch of records at a time.

TensorFlow is imported when there is something to read: it takes seconds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tf_twostage.errors import InputError
from tf_twostage.logs.chunk import Broken, Chunk

_ROWS = 1 << 16
_TYPES = {"bytes_list": pa.binary(), "float_list": pa.float32(), "int64_list": pa.int64()}
_NO_EXAMPLE = "records must be tf.train.Example"


def column_names(path: pathlib.Path) -> list[str]:
  """Names of the features of the first record; none in a file without records."""
  return list(_kinds(path))


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the records in order. A feature that a record lacks is null.

  Args:
    path: a TFRecord file; gzipped if its name ends in .gz.
    columns: features to read. The first record decides whether one holds text or numbers.

  Raises:
    InputError: the file is truncated or corrupt; records that do not fit are `broken`.
  """
  import tensorflow as tf

  kinds = _kinds(path)
  wanted = {column: kinds.get(column, "bytes_list") for column in columns}
  row = 0
  try:
    for records in _dataset(path).batch(_ROWS).as_numpy_iterator():
      chunk = _parse(path, records, wanted, row)
      yield chunk
      row += len(records)
  except tf.errors.OpError:
    raise InputError(
      f"{path}: truncated or corrupt from row {_readable(path)} on; write the file again"
    ) from None


def count_rows(path: pathlib.Path) -> int:
  """Number of records that can be read."""
  return _readable(path)


def _dataset(path: pathlib.Path) -> Any:
  import tensorflow as tf

  return tf.data.TFRecordDataset(str(path), "GZIP" if path.suffix == ".gz" else "")


def _kinds(path: pathlib.Path) -> dict[str, str]:
  """What the first record that can be read has: feature -> the list that holds it."""
  import tensorflow as tf

  try:
    for record in _dataset(path).take(_ROWS).as_numpy_iterator():
      kinds = _features(record)
      if kinds is not None:
        return kinds
  except tf.errors.OpError:
    raise InputError(
      f"{path}: truncated or corrupt from row {_readable(path)} on; write the file again"
    ) from None
  return {}


def _features(record: bytes) -> dict[str, str] | None:
  """Feature -> kind of a record, or None if it is no Example."""
  import tensorflow as tf
  from google.protobuf.message import DecodeError

  try:
    features = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    return None
  found = {name: feature.WhichOneof("kind") for name, feature in features.items()}
  return {name: kind for name, kind in found.items() if kind}


def _parse(
  path: pathlib.Path, records: np.ndarray, wanted: Mapping[str, str], first_row: int
) -> Chunk:
  import tensorflow as tf

  dtypes = {"bytes_list": tf.string, "float_list": tf.float32, "int64_list": tf.int64}
  spec = {name: tf.io.RaggedFeature(dtypes[kind]) for name, kind in wanted.items()}
  rows = first_row + np.arange(len(records))
  broken: list[Broken] = []
  try:
    parsed = tf.io.parse_example(records, spec)
  # TensorFlow quotes a record it cannot parse, and stumbles over its bytes.
  except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
    problems = [_problem(record, wanted) for record in records]
    broken = [
      Broken(row, None, *problem) for row, problem in zip(rows.tolist(), problems, strict=True)
      if problem
    ]  # fmt: skip
    whole = np.array([problem is None for problem in problems])
    rows = rows[whole]
    parsed = tf.io.parse_example(records[whole], spec)
  lengths = {name: column.row_lengths().numpy() for name, column in parsed.items()}
  single = np.ones(len(rows), bool)
  for name, length in lengths.items():
    several = single & (length > 1)
    single &= ~several
    broken += [
      Broken(int(rows[i]), None, name, "must hold one value a row", f"{length[i]} values")
      for i in np.flatnonzero(several)
    ]
  arrays = {
    name: _array(column.flat_values.numpy(), lengths[name], single, _TYPES[wanted[name]])
    for name, column in parsed.items()
  }
  return Chunk(path, pa.table(arrays), rows[single], broken)


def _array(
  values: np.ndarray, lengths: np.ndarray, rows: np.ndarray, kind: pa.DataType
) -> pa.Array:
  """The values of the chosen rows, null where a row has none."""
  first = np.cumsum(lengths) - lengths
  index = pa.array(first[rows], mask=lengths[rows] == 0)
  return pa.array(values, kind).take(index)


def _problem(record: bytes, wanted: Mapping[str, str]) -> tuple[str | None, str, str] | None:
  """What keeps a record from being parsed: column, rule, what was found."""
  found = _features(record)
  if found is None:
    return None, _NO_EXAMPLE, f"{len(record)} bytes"
  for name, kind in wanted.items():
    if name in found and found[name] != kind:
      return name, f"must be a {kind}, as in the first row, not a {found[name]}", found[name]
  return None


def _readable(path: pathlib.Path) -> int:
  """How many records stand before the damage."""
  import tensorflow as tf

  rows = 0
  for size in (_ROWS, 1 << 8, 1):  # a batch that holds the damage is lost whole
    try:
      for batch in _dataset(path).skip(rows).batch(size):
        rows += len(batch)
      return rows
    except tf.errors.OpError:
      continue
  return rows
