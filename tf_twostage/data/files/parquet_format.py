"""Parquet, read a batch of rows at a time."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tf_twostage.data.files.chunk import Chunk
from tf_twostage.errors import InputError

_ROWS = 1 << 17


def column_names(path: pathlib.Path) -> list[str]:
  """Names of the columns.

  Raises:
    InputError: the file is damaged, or no Parquet file.
  """
  with _open(path) as file:
    return list(file.schema_arrow.names)


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the rows in order.

  Args:
    path: a Parquet file.
    columns: what to read; the file has each of them once.

  Raises:
    InputError: the file is damaged, or no Parquet file.
  """
  start = 0
  with _open(path) as file:
    batches = file.iter_batches(_ROWS, columns=list(columns))
    while True:
      try:
        batch = next(batches, None)
      except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error, f" from row {start} on") from None
      if batch is None:
        return
      table = pa.Table.from_batches([batch]).select(list(columns))
      yield Chunk(path, table, start + np.arange(len(table)))
      start += len(table)


def count_rows(path: pathlib.Path) -> int:
  """Number of rows, as the file's footer says."""
  with _open(path) as file:
    return file.metadata.num_rows


def _open(path: pathlib.Path) -> parquet.ParquetFile:
  try:
    return parquet.ParquetFile(path)
  except (pa.ArrowException, OSError, ValueError) as error:
    raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception, where: str = "") -> InputError:
  return InputError(f"{path}: not a readable Parquet file{where} ({error}); write it again")
