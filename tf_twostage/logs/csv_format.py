"""CSV, plain or gzipped, read a block at a time; cells stay text.

A block is parsed by pyarrow. Where that is not enough, for text that is not UTF-8 or lines that are
not rows, the block is gone through record by record, which is ten times slower.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from tf_twostage.errors import InputError
from tf_twostage.logs.chunk import Broken, Chunk

_BLOCK = 1 << 24
_PARSED_AT_ONCE = 1 << 20  # what one thread takes of a block


def column_names(path: pathlib.Path) -> list[str]:
  """The header.

  Raises:
    InputError: the file is empty, or its header is not UTF-8.
  """
  return _header(path, next(_blocks(path), b"")).names


def read(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Chunk]:
  """Yields the file in order, about 16 MiB of text at a time.

  Args:
    path: a CSV whose first row names its columns; gzipped if its name ends in .gz.
    columns: what to read; the file has each of them once.

  Raises:
    InputError: the file is cut off or is no gzip file; rows that cannot be split are `broken`.
  """
  names: list[str] = []
  row, line = 0, 1
  for block in _blocks(path):
    if not names:
      header = _header(path, block)
      names, block, line = header.names, block[header.size :], header.lines + 1
    chunk = _parse(path, block, names, columns, row, line)
    yield chunk
    row += len(chunk.rows) + len(chunk.broken)
    line += block.count(b"\n")


def count_rows(path: pathlib.Path) -> int:
  """Number of lines after the first: no fewer than there are rows."""
  return max(sum(block.count(b"\n") + (block[-1:] != b"\n") for block in _blocks(path)) - 1, 0)


class _Header(NamedTuple):
  names: list[str]
  size: int  # bytes
  lines: int


def _header(path: pathlib.Path, block: bytes) -> _Header:
  """The first record, as the csv module splits it."""
  lines = io.BytesIO(block)
  try:
    reader = csv.reader(raw.decode("utf-8-sig") for raw in lines)
    names = next((record for record in reader if record), None)
  except UnicodeDecodeError:
    raise InputError(f"{path}: line 1 is not UTF-8; write the file again as UTF-8") from None
  if names is None:
    raise InputError(f"{path}: the file is empty; it needs a header and rows")
  return _Header(names, lines.tell(), reader.line_num)


def _blocks(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the file in pieces of whole rows."""
  lines, rest = 0, b""
  try:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
      while data := file.read(_BLOCK):
        data = rest + data
        end = _last_row_end(data)
        if end:
          yield data[:end]
        lines += data.count(b"\n", 0, end)
        rest = data[end:]
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(
      f"{path}: truncated or corrupt gzip, somewhere after line {lines} ({error}); copy or write"
      " the file again"
    ) from None
  if rest:
    yield rest


def _last_row_end(data: bytes) -> int:
  """End of the last newline outside quotes or, where quotes do not pair up, of the last one."""
  end = last = data.rfind(b"\n") + 1
  if b'"' not in data:
    return last
  quoted = data.count(b'"', 0, end) % 2
  while quoted and end:
    before = data.rfind(b"\n", 0, end - 1) + 1
    quoted = (quoted + data.count(b'"', before, end)) % 2
    end = before
  return end or last


def _parse(
  path: pathlib.Path,
  block: bytes,
  names: Sequence[str],
  columns: Sequence[str],
  first_row: int,
  first_line: int,
) -> Chunk:
  keys = [str(place) for place in range(len(names))]  # a header may repeat a name nobody reads
  wanted = [keys[names.index(column)] for column in columns]
  skipped: list[tuple[int, int]] = []  # rows of another length: place in the block, fields

  def skip(row):
    skipped.append((row.number - 1, row.actual_columns))
    return "skip"

  def parse(handler=None):
    return arrow_csv.read_csv(
      pa.BufferReader(block),
      # Rows are numbered only where one thread reads them.
      arrow_csv.ReadOptions(
        column_names=keys, block_size=_PARSED_AT_ONCE, use_threads=handler is None
      ),
      arrow_csv.ParseOptions(newlines_in_values=quoted, invalid_row_handler=handler),
      arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted
      ),
    )

  def by_record():
    return _parse_by_record(path, block, names, columns, first_row, first_line)

  quoted = b'"' in block
  newlines = block.count(b"\n") + (not block.endswith(b"\n"))
  try:
    table = parse()
  except pa.ArrowInvalid:
    if not block.strip():
      return by_record()
    try:
      table = parse(skip)
    except pa.ArrowInvalid:  # text that is not UTF-8
      return by_record()
  line_is_row = not quoted and newlines == len(table) + len(skipped)
  if skipped and not line_is_row:
    return by_record()
  places = np.delete(np.arange(len(table) + len(skipped)), [place for place, _ in skipped])

  @functools.cache
  def lines():
    found = [] if line_is_row else [line for line, _ in _records(path, block, first_line)]
    # The parsers may differ over stray quotes: then the line is about right.
    return np.array(found, int) if len(found) == len(table) else first_line + places

  broken = [
    _wrong_length(first_row + place, first_line + place, fields, names) for place, fields in skipped
  ]
  return Chunk(path, table.rename_columns(list(columns)), first_row + places, broken, lines)


def _wrong_length(row: int, line: int, fields: int, names: Sequence[str]) -> Broken:
  rule = f"a row must have {len(names)} fields, as the header has"
  return Broken(row, line, None, rule, f"{fields} fields")


def _parse_by_record(
  path: pathlib.Path,
  block: bytes,
  names: Sequence[str],
  columns: Sequence[str],
  first_row: int,
  first_line: int,
) -> Chunk:
  """As `_parse`, slower: takes out the rows that stop the fast parser."""
  places = [names.index(column) for column in columns]
  kept, rows, lines, broken = [], [], [], []
  for row, (line, fields) in enumerate(_records(path, block, first_line), first_row):
    if len(fields) != len(names):
      broken.append(_wrong_length(row, line, len(fields), names))
    elif not (text := ",".join(fields)).isprintable() and _has_surrogates(text):
      broken.append(Broken(row, line, None, "text must be UTF-8", _escaped(text)))
    else:
      kept.append([fields[place] for place in places])
      rows.append(row)
      lines.append(line)
  cells = list(zip(*kept, strict=True)) or [()] * len(columns)
  table = pa.table([pa.array(column, pa.string()) for column in cells], list(columns))
  return Chunk(path, table, np.array(rows, int), broken, lambda: np.array(lines, int))


def _records(path: pathlib.Path, block: bytes, first_line: int) -> Iterator[tuple[int, list[str]]]:
  """The line each record begins at, and its fields; bytes that are not UTF-8 as surrogates."""
  reader = csv.reader(io.StringIO(block.decode("utf-8", "surrogateescape"), newline=""))
  line = first_line
  try:
    for fields in reader:
      if fields:  # blank lines are no rows
        yield line, fields
      line = first_line + reader.line_num
  except csv.Error as error:
    raise InputError(
      f"{path}: line {line} cannot be split into fields ({error}); close its quotes"
    ) from None


def _escaped(text: str) -> str:
  return text[:60].encode("ascii", "backslashreplace").decode()


def _has_surrogates(text: str) -> bool:
  return any("\ud800" <= character <= "\udfff" for character in text)
