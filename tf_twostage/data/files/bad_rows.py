"""What is wrong with a log: every kind of fault counted, the first of each kind remembered."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_twostage.data.files.chunk import Chunk
from tf_twostage.errors import InputError, rows_sentence

ON_BAD_ROWS = ("fail", "skip")
_REMEDY = "mend or drop these rows"


@dataclasses.dataclass
class Fault:
  """A rule that rows break.

  Attributes:
    column: the column that the rule is about, as the file calls it, or None for a row as a whole.
    rule: what is asked.
    remedy: what to do.
    file: where the first such row stands.
    row: its number in the file, from 0, header aside.
    line: its line, from 1, in a CSV.
    value: what it holds; None where it is missing.
    count: how many rows break the rule.
  """

  column: str | None
  rule: str
  remedy: str
  file: str
  row: int
  line: int | None
  value: str | None
  count: int = 0

  def message(self, rows: int) -> str:
    """One sentence: where, what, how often, what to do. `rows` is the size of the log."""
    subject = f"{self.file}: column {self.column!r}" if self.column else f"{self.file}:"
    line = "" if self.line is None else f"line {self.line}, "
    value = "missing" if self.value is None else repr(self.value)
    first = f"{line}row {self.row}, value {value}"
    return rows_sentence(subject, self.rule, self.count, rows, first, self.remedy)


class BadRows:
  """The faults of a log, gathered while its chunks pass."""

  def __init__(self):
    self.rows = 0
    self.bad = 0
    self.cut: list[str] = []  # files that cannot be read to their ends, and from where on
    self._faults: dict[tuple[str | None, str], Fault] = {}

  @property
  def faults(self) -> list[Fault]:
    return list(self._faults.values())

  def see(self, chunk: Chunk) -> None:
    """Counts a chunk's rows, and the broken ones among them."""
    self.rows += len(chunk.rows) + len(chunk.broken)
    self.bad += len(chunk.broken)
    for broken in chunk.broken:
      place = (str(chunk.file), broken.row, broken.line)
      self._fault(broken.column, broken.rule, broken.remedy, place, broken.value).count += 1
      if broken.ends:
        self.cut.append(f"{chunk.file}: nothing from row {broken.row} on ({broken.value})")

  def require(
    self,
    valid: np.ndarray,
    chunk: Chunk,
    column: str,
    rule: str,
    remedy: str = _REMEDY,
    rows: np.ndarray | None = None,
  ) -> None:
    """Notes the rows that are not valid.

    Args:
      valid: [k] bool.
      chunk: where they stand.
      column: the column that the rule is about, as the file calls it.
      rule: what it must do, such as "must be finite".
      remedy: what to do.
      rows: [k] which rows of the chunk they are; by default all.
    """
    bad = np.flatnonzero(~valid)
    if not bad.size:
      return
    first = int(bad[0] if rows is None else rows[bad[0]])
    key = (column, rule)
    if key in self._faults:
      self._faults[key].count += bad.size
      return
    row, line = chunk.place(first)
    value = _shown(chunk, column, first)
    self._fault(column, rule, remedy, (str(chunk.file), row, line), value).count += bad.size

  def message(self) -> str:
    """All faults, a line each."""
    lines = [fault.message(self.rows) for fault in self.faults]
    if len(lines) == 1:
      return lines[0]
    return "\n".join([f"{self.bad} of {self.rows} rows are bad, in {len(lines)} ways", *lines])

  def settle(self, on_bad_rows: str) -> None:
    """Raises InputError if rows are bad and shall not be skipped, or if none is left."""
    if on_bad_rows not in ON_BAD_ROWS:
      raise InputError(f"on_bad_rows must be one of {', '.join(ON_BAD_ROWS)}, got {on_bad_rows!r}")
    if self._faults and (on_bad_rows == "fail" or self.bad >= self.rows):
      raise BadRowsError(self.message())

  def _fault(
    self,
    column: str | None,
    rule: str,
    remedy: str,
    place: tuple[str, int, int | None],
    value: str | None,
  ) -> Fault:
    return self._faults.setdefault((column, rule), Fault(column, rule, remedy, *place, value))


class BadRowsError(InputError):
  """Files can be read, but rows of them break the contract."""


def _shown(chunk: Chunk, column: str, index: int) -> str | None:
  value = chunk.table[column][index].as_py()
  if value is None:
    return None
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)[:80]
