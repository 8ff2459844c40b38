"""Delimited text -> a table that remembers where it came from, so that errors can say so."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError

# "::" is two characters, which the fast parser cannot split at; this control character is not
# part of any text.
_SEPARATOR = b"\x1f"


@dataclasses.dataclass(frozen=True, eq=False)
class RawTable:
  """Rows as they stand in a file.

  Attributes:
    place: the file, for messages.
    frame: the rows; the index counts them as the file does and its name says what it counts.
    remedy: what to do when the file is wrong, for messages.
  """

  place: str
  frame: pd.DataFrame
  remedy: str

  def require(self, valid: pd.Series, column: str, rule: str) -> None:
    """Raises InputError, naming the first offender, unless all rows are valid.

    Args:
      valid: whether a row obeys the rule, [rows] bool.
      column: the column that the rule is about.
      rule: what the column must do, such as "be unique".
    """
    bad = np.flatnonzero(~np.asarray(valid, dtype=bool))
    if bad.size:
      index = self.frame.index
      value = str(self.frame[column].iloc[bad[0]])
      raise InputError(
        f"{self.place}: column {column!r} must {rule}; {bad.size} of {len(index)} rows do not"
        f" (first: {index.name} {index[bad[0]]}, {value!r}); {self.remedy}"
      )


def parse(data: bytes, columns: Mapping[str, type], place: str, remedy: str) -> RawTable:
  """Reads text of the form `a::b::c`, one row a line, without header or quoting.

  Args:
    data: the file's content, latin-1.
    columns: the type of each column by name, `int` (zero or more) or `str`, in the file's order.
    place: the file's name in messages.
    remedy: what to do when the file is wrong, for messages.

  Returns:
    The rows, counted from line 1.

  Raises:
    InputError: the file is empty or cut off, or a line has too many or too few fields, or a
      number is not one, is negative or has more than 18 digits.
  """
  if not data.strip():
    raise InputError(f"{place}: the file is empty; {remedy}")
  if not data.endswith(b"\n"):
    last = data.count(b"\n") + 1
    raise InputError(f"{place}: cut off in line {last}, which has no newline; {remedy}")
  text = data.replace(b"\r\n", b"\n").replace(b"::", _SEPARATOR)
  _check_fields(text, len(columns), place, remedy)
  lines = pd.RangeIndex(1, text.count(b"\n") + 1, name="line")
  numbers = [name for name, kind in columns.items() if kind is int]
  dtypes = {name: np.int64 if kind is int else str for name, kind in columns.items()}
  try:
    frame = _read_csv(text, dtypes)
    # pandas 2 reads numbers beyond int64 as another type instead of refusing them.
    if ((frame[numbers] < 0) | (frame[numbers] >= 10**18)).to_numpy().any():
      raise ValueError("a number is negative or has more than 18 digits")
  except (ValueError, OverflowError) as error:
    for column in numbers:
      found = _read_csv(text, dict.fromkeys(columns, str), usecols=[column]).set_index(lines)
      is_number = found[column].str.fullmatch(r"[0-9]{1,18}")
      RawTable(place, found, remedy).require(is_number, column, "be a whole number")
    raise InputError(f"{place}: {error}; {remedy}") from error
  return RawTable(place, frame.set_index(lines), remedy)


def _read_csv(text: bytes, dtypes: Mapping[str, type], **options) -> pd.DataFrame:
  return pd.read_csv(
    io.BytesIO(text),
    sep=_SEPARATOR.decode(),
    header=None,
    names=list(dtypes),
    dtype=dtypes,
    encoding="latin-1",
    quoting=csv.QUOTE_NONE,
    na_filter=False,
    lineterminator="\n",
    engine="c",
    **options,
  )


def _check_fields(text: bytes, expected: int, place: str, remedy: str) -> None:
  """Raises InputError unless every line has `expected` fields (pandas would pad short lines)."""
  symbols = np.frombuffer(text, np.uint8)
  line_ends = np.flatnonzero(symbols == ord("\n"))
  separators = np.flatnonzero(symbols == ord(_SEPARATOR))
  fields = 1 + np.diff(np.searchsorted(separators, line_ends), prepend=0)
  bad = np.flatnonzero(fields != expected)
  if bad.size:
    raise InputError(
      f"{place}: every line needs {expected} fields separated by '::'; {bad.size} of"
      f" {len(fields)} lines differ (first: line {bad[0] + 1} has {fields[bad[0]]}); {remedy}"
    )
