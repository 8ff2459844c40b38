"""Parts of log files, and their bad rows: kinds of faults are counted, and first rows kept."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tf_twostage.errors import InputError, rows_sentence

ON_BAD_ROWS = ("fail", "skip")
REMEDY = "mend or drop these rows"


class Broken(NamedTuple):
  """A row that cannot be split into columns."""

  row: int  # its number in the file, from 0, without the header
  column: str | None  # the column that caused it, or None
  rule: str  # what the row or the column must do
  value: str  # what was found


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
  """Consecutive rows of a file."""

  file: pathlib.Path
  table: pa.Table  # columns of [k] rows
  rows: np.ndarray  # [k] int64, the number of each row in the file, from 0, without the header
  broken: Sequence[Broken] = ()  # rows of this part of the file that are not in the table
  # row number -> line of the file, from 1; None if the file has no lines
  line: Callable[[int], int] | None = None
  # column of `table` -> its name in the file, where these differ
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  cells: pa.Table | None = None  # the table before its values were converted


class BadRowsError(InputError):
  """The files can be read, but some of their rows are bad."""


@dataclasses.dataclass
class Fault:
  """A rule, and the rows that break it."""

  column: str | None  # name of the column in the file; None if the rule is about the whole row
  rule: str  # what the column must do
  remedy: str  # what the user can do
  file: str  # the file of the first such row
  row: int  # its number in the file, from 0, without the header
  line: int | None  # its line in a CSV file, from 1
  value: str | None  # its value; None if it is missing
  count: int = 0  # number of rows that break the rule

  def message(self, rows: int) -> str:
    """The fault in one sentence, for a log of `rows` rows."""
    subject = f"{self.file}: column {self.column!r}" if self.column else f"{self.file}:"
    line = "" if self.line is None else f"line {self.line}, "
    value = "missing" if self.value is None else repr(self.value)
    first = f"{line}row {self.row}, value {value}"
    return rows_sentence(subject, self.rule, self.count, rows, first, self.remedy)


class BadRows:
  """Collects the faults of a log while its chunks are read.

  Attributes:
    rows: number of rows read.
    bad: number of bad rows among them.
  """

  def __init__(self) -> None:
    self.rows = 0
    self.bad = 0
    self._faults: dict[tuple[str | None, str], Fault] = {}

  @property
  def faults(self) -> list[Fault]:
    return list(self._faults.values())

  def add_chunk(self, chunk: Chunk) -> None:
    """Counts the rows of a chunk, and its broken rows as bad."""
    self.rows += len(chunk.rows) + len(chunk.broken)
    self.bad += len(chunk.broken)
    for row, column, rule, value in chunk.broken:
      self._fault(chunk, row, column, rule, REMEDY, value).count += 1

  def require(
    self, valid: np.ndarray, chunk: Chunk, column: str, rule: str, remedy: str = REMEDY
  ) -> None:
    """Records the rows of a chunk that are not valid; does not add them to `bad`."""
    bad = np.flatnonzero(~valid)
    if not bad.size:
      return
    first, name = int(bad[0]), chunk.names.get(column, column)
    cell = (chunk.table if chunk.cells is None else chunk.cells)[column][first]
    try:
      value = cell.as_py()
    except (ValueError, OverflowError):  # a date that Python does not have
      value = cell.cast(pa.string()).as_py()
    if isinstance(value, bytes):
      value = value.decode("utf-8", "backslashreplace")
    shown = None if value is None else str(value)[:80]
    self._fault(chunk, int(chunk.rows[first]), name, rule, remedy, shown).count += bad.size

  def message(self) -> str:
    """All faults, one a line."""
    lines = [fault.message(self.rows) for fault in self.faults]
    if len(lines) == 1:
      return lines[0]
    return "\n".join([f"{self.bad} of {self.rows} rows are bad, in {len(lines)} ways", *lines])

  def settle(self, on_bad_rows: str) -> None:
    """Raises BadRowsError for bad rows, if on_bad_rows is not "skip" or there are no good rows."""
    if on_bad_rows not in ON_BAD_ROWS:
      raise InputError(f"on_bad_rows must be one of {', '.join(ON_BAD_ROWS)}, got {on_bad_rows!r}")
    if self._faults and (on_bad_rows == "fail" or self.bad >= self.rows):
      raise BadRowsError(self.message())

  def _fault(
    self, chunk: Chunk, row: int, column: str | None, rule: str, remedy: str, value: str | None
  ) -> Fault:
    if (column, rule) not in self._faults:
      line = None if chunk.line is None else chunk.line(row)
      fault = Fault(column, rule, remedy, str(chunk.file), row, line, value)
      self._faults[column, rule] = fault
    return self._faults[column, rule]
