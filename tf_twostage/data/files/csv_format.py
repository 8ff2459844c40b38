"""CSV, plain or gzipped, read a block at a time; cells stay text.

A block is parsed by pyarrow, which refuses it whole if one row has too few fields or is not UTF-8.
Such rows are then looked for and taken out.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
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

from tf_twostage.data.files.chunk import Broken, Chunk
from tf_twostage.errors import InputError

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
    chunk = _parse(_Block(path, block, names, columns, row, line))
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


@dataclasses.dataclass(frozen=True)
class _Block:
  """Whole rows of a file, and where they stand: their first row and line."""

  path: pathlib.Path
  text: bytes
  names: Sequence[str]
  columns: Sequence[str]
  row: int
  line: int

  def wrong_length(self, row: int, line: int, fields: int) -> Broken:
    rule = f"a row must have {len(self.names)} fields, as the header has"
    return Broken(self.row + row, self.line + line, None, rule, f"{fields} fields")

  def wrong_text(self, row: int, line: int, text: str) -> Broken:
    shown = text[:60].encode("ascii", "backslashreplace").decode()
    return Broken(self.row + row, self.line + line, None, "text must be UTF-8", shown)


def _parse(block: _Block) -> Chunk:
  try:
    table = _table(block, block.text)
  except pa.ArrowInvalid:
    # A carriage return alone ends a row, too.
    lone = block.text.count(b"\r") > block.text.count(b"\r\n")
    return _parse_by_record(block) if lone or b'"' in block.text else _parse_by_line(block)
  rows = np.arange(len(table))

  @functools.cache
  def lines():
    newlines = block.text.count(b"\n") + (not block.text.endswith(b"\n"))
    if b'"' not in block.text and newlines == len(rows):
      return block.line + rows
    found = np.array([block.line + line for line, _ in _records(block)], int)
    # The parsers may differ over stray quotes: then the line is about right.
    return found if len(found) == len(rows) else block.line + rows

  return Chunk(block.path, table, block.row + rows, lines=lines)


def _table(block: _Block, text: bytes) -> pa.Table:
  """Raises ArrowInvalid if any row has another length than the header, or is not UTF-8."""
  keys = [str(place) for place in range(len(block.names))]  # a name that nobody reads may repeat
  wanted = [keys[block.names.index(column)] for column in block.columns]
  if not text.strip():
    return pa.table([pa.array([], pa.string()) for _ in wanted], list(block.columns))
  table = arrow_csv.read_csv(
    pa.BufferReader(text),
    arrow_csv.ReadOptions(column_names=keys, block_size=_PARSED_AT_ONCE),
    arrow_csv.ParseOptions(newlines_in_values=b'"' in text),
    arrow_csv.ConvertOptions(
      column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted
    ),
  )
  return table.rename_columns(list(block.columns))


def _parse_by_line(block: _Block) -> Chunk:
  """Takes out the rows that stop the parser, where a row is a line: there are no quotes."""
  symbols = np.frombuffer(block.text, np.uint8)
  ends = np.flatnonzero(symbols == ord("\n"))
  if not block.text.endswith(b"\n"):
    ends = np.append(ends, len(symbols))
  starts = np.append(0, ends[:-1] + 1)
  commas = np.flatnonzero(symbols == ord(","))
  fields = 1 + np.diff(np.searchsorted(commas, ends), prepend=0)
  # A blank line is no row; it may hold what is left of a Windows newline.
  blank = (starts == ends) | ((starts + 1 == ends) & (symbols[starts] == ord("\r")))
  rows = np.cumsum(~blank) - 1
  wrong_length = np.flatnonzero(~blank & (fields != len(block.names)))
  wrong_text = np.setdiff1d(np.searchsorted(ends, list(_not_utf8(block.text))), wrong_length)
  broken = [block.wrong_length(int(rows[i]), int(i), int(fields[i])) for i in wrong_length]
  for i in wrong_text:
    text = block.text[starts[i] : ends[i]].decode("utf-8", "surrogateescape")
    broken.append(block.wrong_text(int(rows[i]), int(i), text))
  good = np.ones(len(ends), bool)
  good[np.concatenate([wrong_length, wrong_text])] = False
  kept = np.repeat(good, np.append(starts[1:], len(symbols)) - starts)
  table = _table(block, symbols[kept].tobytes())
  lines = np.flatnonzero(good & ~blank)
  return Chunk(block.path, table, block.row + rows[lines], broken, lambda: block.line + lines)


def _not_utf8(text: bytes) -> Iterator[int]:
  """Where text cannot be decoded: a place in each line that has one."""
  view, start = memoryview(text), 0
  while True:
    try:
      codecs.utf_8_decode(view[start:], "strict", True)
      return
    except UnicodeDecodeError as error:
      yield start + error.start
      start = text.find(b"\n", start + error.start) + 1
      if not start:
        return


def _parse_by_record(block: _Block) -> Chunk:
  """The same where rows and lines differ, as quotes allow: ten times slower."""
  places = [block.names.index(column) for column in block.columns]
  kept, rows, lines, broken = [], [], [], []
  for row, (line, fields) in enumerate(_records(block)):
    text = ",".join(fields)
    if len(fields) != len(block.names):
      broken.append(block.wrong_length(row, line, len(fields)))
    elif not text.isprintable() and any("\ud800" <= symbol <= "\udfff" for symbol in text):
      broken.append(block.wrong_text(row, line, text))
    else:
      kept.append([fields[place] for place in places])
      rows.append(row)
      lines.append(line)
  cells = list(zip(*kept, strict=True)) or [()] * len(places)
  table = pa.table([pa.array(column, pa.string()) for column in cells], list(block.columns))
  return Chunk(
    block.path, table, block.row + np.array(rows, int), broken,
    lambda: block.line + np.array(lines, int),
  )  # fmt: skip


def _records(block: _Block) -> Iterator[tuple[int, list[str]]]:
  """The line in the block at which each record begins, and its fields.

  Bytes that are not UTF-8 become surrogates.
  """
  reader = csv.reader(io.StringIO(block.text.decode("utf-8", "surrogateescape"), newline=""))
  line = 0
  try:
    for fields in reader:
      if fields:  # blank lines are no rows
        yield line, fields
      line = reader.line_num
  except csv.Error as error:
    raise InputError(
      f"{block.path}: line {block.line + line} cannot be split into fields ({error}); close its"
      " quotes"
    ) from None
