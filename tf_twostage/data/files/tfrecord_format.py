"""TFRecord files of tf.train.Example, plain or gzipped, read a batch of records at a time.

TensorFlow is imported when there is something to read: it takes seconds.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tf_twostage.data.files import framing
from tf_twostage.data.files.chunk import Broken, Chunk
from tf_twostage.errors import InputError

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

  Records that do not fit or are damaged are `broken`. Damage to a payload costs its record; behind
  a cut, or damage to a length, nothing can be read.

  Raises:
    InputError: the file is damaged, and no record of it can be read.
  """
  kinds = _kinds(path)
  wanted = {column: kinds.get(column, "bytes_list") for column in columns}
  for rows, records, damaged in _records(path):
    chunk = _parse(path, records, wanted, rows)
    yield dataclasses.replace(chunk, broken=[*chunk.broken, *map(_broken, damaged)])


def count_rows(path: pathlib.Path) -> int:
  """Number of records that begin in the file."""
  return framing.count(path)


def _dataset(path: pathlib.Path) -> Any:
  import tensorflow as tf

  return tf.data.TFRecordDataset(str(path), "GZIP" if path.suffix == ".gz" else "")


def _records(
  path: pathlib.Path,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[framing.Damage]]]:
  """Yields rows [k], records [k], and what is damaged among them, in the order of the file."""
  import tensorflow as tf

  row = octets = 0
  try:
    for records in _dataset(path).batch(_ROWS).as_numpy_iterator():
      yield row + np.arange(len(records)), records, []
      row += len(records)
      octets += framing.size(records)
    # A file may end within the length of a record without a word from TensorFlow.
    if path.suffix == ".gz" or octets == path.stat().st_size:
      return
  except tf.errors.OpError:
    pass  # the reader of frames says what is wrong, and reads around it
  for part in framing.read(path, row):
    yield part.rows, part.records, part.damages


def _broken(damage: framing.Damage) -> Broken:
  return Broken(
    row=damage.row,
    line=None,
    column=None,
    rule="truncated or corrupt to its end" if damage.ends else "truncated or corrupt record",
    value=f"byte offset {damage.offset}: {damage.what}",
    remedy="write the file again, or go on with what can be read (on_bad_rows: skip)",
    ends=damage.ends,
  )


def _kinds(path: pathlib.Path) -> dict[str, str]:
  """What the first record that can be read has: feature -> the list that holds it."""
  damages: list[framing.Damage] = []
  for _, records, damaged in _records(path):
    damages += damaged
    for record in records:
      kinds = _features(record)
      if kinds is not None:
        return kinds
  if damages:
    raise InputError(
      f"{path}: truncated or corrupt, no record can be read: {damages[0]}; write the file again, or"
      " name the others"
    )
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
  path: pathlib.Path, records: np.ndarray, wanted: Mapping[str, str], rows: np.ndarray
) -> Chunk:
  import tensorflow as tf

  dtypes = {"bytes_list": tf.string, "float_list": tf.float32, "int64_list": tf.int64}
  spec = {name: tf.io.RaggedFeature(dtypes[kind]) for name, kind in wanted.items()}
  broken: list[Broken] = []
  try:
    parsed = tf.io.parse_example(tf.constant(records, tf.string), spec)
  # TensorFlow quotes a record it cannot parse, and stumbles over its bytes.
  except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
    problems = [_problem(record, wanted) for record in records]
    broken = [
      Broken(row, None, *problem) for row, problem in zip(rows.tolist(), problems, strict=True)
      if problem
    ]  # fmt: skip
    whole = np.array([problem is None for problem in problems])
    rows = rows[whole]
    parsed = tf.io.parse_example(tf.constant(records[whole], tf.string), spec)
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
