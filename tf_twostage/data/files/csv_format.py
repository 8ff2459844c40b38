"""Files of values separated by commas, tabs, semicolons or bars, perhaps gzipped; cells stay bytes.

pyarrow reads them in blocks: 4.6 million rows of seven columns a second on one core, 1.7 million
where they are gzipped.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import gzip
import io
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from tf_twostage.data.files.bad_rows import Broken, Chunk
from tf_twostage.errors import InputError

_BLOCK = 1 << 22  # bytes; no row is longer
_BYTES = "latin-1"  # gives every byte a character


def column_names(path: pathlib.Path) -> list[str]:
  """Returns the header."""
  with _open(path, _BYTES) as reader:
    try:
      return [name.encode(_BYTES).decode() for name in reader.schema.names]
    except UnicodeDecodeError:
      raise InputError(f"{path}: line 1 is not UTF-8; write the file again as UTF-8") from None


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the file in order, some megabytes at a time. Rows with too few fields are broken."""
  broken: list[Broken] = []  # pyarrow may be a block ahead
  unclosed: list[int] = []  # rows that a quote extends to the end of the file

  def skip(row: arrow_csv.InvalidRow) -> str:
    if "\n" in row.text and row.text.count('"') % 2:
      unclosed.append(row.number - 2)
    rule = f"a row must have {row.expected_columns} fields, as the header has"
    broken.append(Broken(row.number - 2, None, rule, f"{row.actual_columns} fields"))
    return "skip"

  start = 0
  line = functools.partial(line_of, path)
  # pyarrow cannot hand over broken rows that it cannot decode.
  encoding = "utf-8" if _is_utf8(path) else _BYTES
  names = [column.encode().decode(encoding) for column in columns]
  try:
    with _open(path, encoding, names, skip) as batches:
      for batch in batches:
        good = np.ones(len(batch) + len(broken), bool)
        good[[row.row - start for row in broken if row.row - start < len(good)]] = False
        rows = start + np.flatnonzero(good)[: len(batch)]
        start = int(rows[-1]) + 1 if len(rows) else start
        before = [row for row in broken if row.row < start]
        del broken[: len(before)]
        cells = [_undone(batch.column(name), encoding) for name in names]
        yield Chunk(path, pa.table(cells, list(columns)), rows, before, line)
  except pa.ArrowInvalid as error:
    if "straddling" in str(error):
      raise _too_long(path) from None
    raise _unclosed(path, line(sys.maxsize), str(error)) from None
  if unclosed:
    raise _unclosed(path, line(unclosed[0]))
  if broken:
    none = pa.table({column: pa.array([], pa.binary()) for column in columns})
    yield Chunk(path, none, np.empty(0, int), broken, line)


def _unclosed(path: pathlib.Path, line: int, why: str = "a quote is not closed") -> InputError:
  return InputError(f"{path}: line {line} cannot be split into fields ({why}); close its quotes")


def _too_long(path: pathlib.Path) -> InputError:
  return InputError(
    f"{path}: a row is longer than {_BLOCK >> 20} MB, or a quote is not closed; close it, or leave"
    " the long text out"
  )


def line_of(path: pathlib.Path, row: int) -> int:
  """Returns the line, from 1, at which a row begins, or at which the last record begins.

  Reads the file up to there, a million rows a second, so it is for messages only.
  """
  limit = csv.field_size_limit(4 * _BLOCK)
  line, number = 1, -1  # the header
  try:
    with _bytes(path) as raw:
      text = io.TextIOWrapper(raw, "latin-1", newline="")
      reader = csv.reader(text, delimiter=_separator(path))
      for record in reader:
        if record and number == row:
          break
        number += bool(record)  # blank lines are not rows
        line = reader.line_num + 1
  except csv.Error:  # a quote is not closed, and the rest of the file is one field
    pass
  finally:
    csv.field_size_limit(limit)
  return line


def _is_utf8(path: pathlib.Path) -> bool:
  """Whether all of a file is UTF-8, as far as it can be unpacked."""
  decoder = codecs.getincrementaldecoder("utf-8")()
  with contextlib.suppress(OSError, EOFError, zlib.error), _bytes(path) as raw:
    try:
      for block in iter(lambda: raw.read(_BLOCK), b""):
        decoder.decode(block)
    except UnicodeDecodeError:
      return False
  return True


def _begins_with_mark(path: pathlib.Path) -> bool:
  """Whether a file begins with a byte order mark of UTF-8, as Excel writes it."""
  with contextlib.suppress(OSError, EOFError, zlib.error), _bytes(path) as raw:
    return raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
  return False


def _undone(cells: pa.Array, encoding: str) -> pa.Array:
  """The bytes of cells as they are in the file, [k] binary."""
  if encoding != _BYTES or pc.all(pc.string_is_ascii(cells.cast(pa.string()))).as_py():
    return cells
  return pa.array([cell.decode().encode(_BYTES) for cell in cells.to_pylist()], pa.binary())


@contextlib.contextmanager
def _open(
  path: pathlib.Path,
  encoding: str,
  columns: Sequence[str] = (),
  invalid_row: Callable[[arrow_csv.InvalidRow], str] = lambda row: "skip",
) -> Iterator[arrow_csv.CSVStreamingReader]:
  compression = "gzip" if path.suffix == ".gz" else None
  # Without threads pyarrow numbers invalid rows.
  options = (
    arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK, encoding=encoding),
    arrow_csv.ParseOptions(
      delimiter=_separator(path), newlines_in_values=True, invalid_row_handler=invalid_row
    ),
    arrow_csv.ConvertOptions(
      column_types=dict.fromkeys(columns, pa.binary()), include_columns=list(columns)
    ),
  )
  with path.open("rb") as file, pa.input_stream(file, compression=compression) as stream:
    try:
      if _begins_with_mark(path):
        stream.read(len(codecs.BOM_UTF8))
      try:
        reader = arrow_csv.open_csv(stream, *options)
      except pa.ArrowInvalid as error:
        if "straddling" in str(error):
          raise _too_long(path) from None
        raise InputError(
          f"{path}: the file is empty, or its header has a quote that is not closed ({error}); it"
          " needs a header and rows"
        ) from None
      with reader:
        yield reader
    except OSError as error:
      if error.errno is not None:
        raise
      raise InputError(
        f"{path}: truncated or corrupt gzip, before byte {file.tell()} ({error}); copy or write the"
        " file again"
      ) from None


def _separator(path: pathlib.Path) -> str:
  """What the header has most of."""
  header = b""
  with contextlib.suppress(OSError, EOFError, zlib.error), _bytes(path) as raw:
    header = re.split(rb"[\r\n]", raw.read(_BLOCK), maxsplit=1)[0]
  return max(",\t;|", key=lambda separator: header.count(separator.encode()))


def _bytes(path: pathlib.Path) -> BinaryIO:
  return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
