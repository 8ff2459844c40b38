"""Parquet files, read in batches of rows."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tf_twostage.data.files.bad_rows import Chunk
from tf_twostage.errors import InputError

_ROWS = 1 << 17


def column_names(path: pathlib.Path) -> list[str]:
  """Returns the names of the columns."""
  with _open(path) as file:
    return list(file.schema_arrow.names)


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the rows in order."""
  start = 0
  with _open(path) as file:
    try:
      for batch in file.iter_batches(_ROWS, columns=list(columns)):
        table = pa.Table.from_batches([batch]).select(list(columns))
        yield Chunk(path, table, start + np.arange(len(table)))
        start += len(table)
    except (pa.ArrowException, OSError) as error:
      raise _unreadable(path, error, f" from row {start} on") from None


def _open(path: pathlib.Path) -> parquet.ParquetFile:
  try:
    return parquet.ParquetFile(path)
  except (pa.ArrowException, OSError) as error:
    raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception, where: str = "") -> InputError:
  return InputError(f"{path}: not a readable Parquet file{where} ({error}); write it again")
