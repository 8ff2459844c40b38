"""Raw columns -> typed and checked columns; what the columns of a log must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data.files.bad_rows import REMEDY, BadRows, Chunk

LIST_SEPARATOR = "\x1f"  # the ASCII unit separator, which is in no text
LEAST_EXAMINATION = np.float32(1e-6)  # with it one reward counts a million times
_INT_MAX = np.iinfo(np.int32).max
_DECIDING = 1000  # rows that decide whether times are dates


class Rule(NamedTuple):
  """What a column of numbers must hold."""

  dtype: str  # its type in memory
  valid: Callable[[np.ndarray], np.ndarray]  # [k] values -> [k] bool
  text: str  # the rule in words, such as "must be finite"
  remedy: str = REMEDY  # what the user can do


_INDEX = Rule(
  "int32", lambda x: (x >= 0) & (x <= _INT_MAX) & (x == np.floor(x)), "must be a whole number >= 0"
)
# Kernels flush float32 subnormals to zero, and a weight divides by the propensity.
_PROPENSITY = Rule(
  "float32",
  lambda x: (x >= np.finfo(np.float32).tiny) & (x <= 1),
  "must lie in (0, 1]",
  "log the probability of the single draw, not a percentage; mend or drop these rows",
)
RULES = {
  "user_index": _INDEX,
  "action": _INDEX,
  "propensity": _PROPENSITY,
  "cascade_propensity": _PROPENSITY,
  "examination": Rule(
    "float32",
    lambda x: (x >= LEAST_EXAMINATION) & (x <= 1),
    f"must lie in [{LEAST_EXAMINATION:g}, 1], since rewards are divided by it",
    "write the probability that the row's slot is examined, or drop these rows",
  ),
  # Squares of weighted rewards, summed over millions of rows, fit into float32.
  "reward": Rule(
    "float32",
    lambda x: (x >= 0) & (x <= 1e15),
    "must be >= 0 and at most 1e15",
    "let the lowest reward be 0, such as that of a dislike, or drop these rows",
  ),
  "position": _INDEX,
  "catalogue": _INDEX,
  "ranker_score": Rule("float32", np.isfinite, "must be finite"),
}
NUMBER = Rule("float64", lambda x: np.abs(x) <= 1e30, "must be finite, within -1e30 and 1e30")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_TIMES = (-62_135_596_800, 253_402_300_799)  # seconds, the years 1 to 9999


def position_rule(first: int) -> Rule:
  """The rule of positions that count from `first`."""
  return _INDEX._replace(valid=lambda x: _INDEX.valid(x - first), text=f"{_INDEX.text[:-1]}{first}")


def combinations(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray | pa.Array:
  """Values side by side as one string, such that different values make different strings."""
  escaped = []
  for column in columns:
    values = pc.replace_substring(pc.cast(column, pa.string()), "\\", "\\\\")
    escaped.append(pc.replace_substring(values, "|", "\\|"))
  return pc.binary_join_element_wise(*escaped, "|")


def propensity_rule(own: np.ndarray) -> Rule:
  """The rule of the propensities of one of several policies, which logged the rows `own`, [k]."""
  return Rule(
    "float32",
    lambda x: _PROPENSITY.valid(x) | (~own & (x >= 0) & (x <= 1)),
    "must lie in [0, 1], above 0 where its policy logged the row",
    "write the probability with which this policy shows the row's item, or drop these rows",
  )


def rule(name: str) -> Rule:
  """The rule of a column by its native name; by default any finite number."""
  return RULES.get(name, NUMBER)


class IdSet(NamedTuple):
  """Ids that a column may hold."""

  ids: pa.Array  # [v] string
  text: str  # the rule in words, such as "must name a known item"
  remedy: str  # what the user can do


class CheckedColumns:
  """Converts the columns of a chunk, and records rows that break a rule as bad.

  Values of bad rows are placeholders.
  """

  def __init__(self, chunk: Chunk, bad_rows: BadRows):
    self.chunk = chunk
    self._bad_rows = bad_rows
    self._good = np.ones(len(chunk.rows), bool)
    bad_rows.add_chunk(chunk)

  def require(self, valid: Any, column: str, rule: str, remedy: str = REMEDY) -> None:
    """Records the rows that are not valid, [k] bool; see `BadRows.require`."""
    valid = np.asarray(valid, bool)
    self._bad_rows.require(valid, self.chunk, column, rule, remedy)
    self._bad_rows.bad += int((self._good & ~valid).sum())
    self._good &= valid

  def numbers(self, column: str, wanted: Rule | None = None) -> np.ndarray:
    """Values that obey a rule, by default that of the column's name: [k] of the rule's dtype."""
    wanted = wanted or rule(column)
    values, is_number = as_numbers(self.chunk.table[column])
    if not is_number.all():
      given = self.chunk.table[column].filter(pa.array(~is_number))
      dates = ", and dates as seconds" if np.isfinite(as_times(given)).any() else ""
      self.require(
        is_number, column, "must hold numbers", f"write plain numbers such as 0.5{dates}"
      )
    with np.errstate(over="ignore", under="ignore"):  # the rule sees what float32 cannot hold
      cast = values.astype(wanted.dtype) if wanted.dtype.startswith("float") else values
    valid = wanted.valid(cast)
    self.require(valid | ~is_number, column, wanted.text, wanted.remedy)
    return np.where(valid, cast, 0).astype(wanted.dtype)

  def text(self, column: str, separator: str | None = None) -> pa.Array:
    """Values as strings, missing ones as ""; without a separator to join them lists are bad."""
    return self._text(column, separator)[0]

  def vectors(self, column: str, separator: str, width: int = 0) -> np.ndarray:
    """Lists of numbers, [k, width] float32; by default as wide as the first that is not empty.

    Cells of text hold numbers with the separator between them, perhaps in square brackets.
    """
    lists = self.chunk.table[column].combine_chunks()
    if not pa.types.is_nested(lists.type):
      text = pc.utf8_trim(as_text(self.chunk.table[column])[0], "[] ")
      lists = pc.split_pattern(text, separator)
    if not is_list(lists.type):
      lists = pa.nulls(len(lists), pa.list_(pa.float64()))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    width = width or int(next(filter(None, lengths), 0))
    fits = (lengths == width) & (width > 0)
    flat = pa.chunked_array([lists.filter(pa.array(fits)).flatten()])
    values = np.zeros((len(lists), width), np.float64)
    values[fits] = as_numbers(flat)[0].reshape(-1, width)
    remedy = "write a vector of one length in each row, zeros where there is none"
    self.require(fits, column, f"must hold {width or 'some'} numbers, as other rows do", remedy)
    valid = np.all(NUMBER.valid(values), axis=1)
    self.require(valid, column, NUMBER.text, remedy)
    return np.where(np.expand_dims(valid, 1), values, 0).astype(np.float32)

  def ids(self, column: str, known: IdSet | None = None) -> pa.Array:
    """Values as strings, [k], none blank, and all of them in `known` if given."""
    ids, valid = self._text(column)
    blank = valid & _mask(pc.equal(ids, ""))
    self.require(~blank, column, "must not be blank", "give every row its id, or drop these rows")
    if known is not None:
      listed = _mask(pc.is_in(ids, value_set=known.ids))
      self.require(listed | blank | ~valid, column, known.text, known.remedy)
    return ids

  def _text(self, column: str, separator: str | None = None) -> tuple[pa.Array, np.ndarray]:
    """Values as strings; and which of them are valid text, [k] bool."""
    raw = self.chunk.table[column]
    single = np.ones(len(raw), bool)
    if separator is None and pa.types.is_nested(raw.type):
      single = raw.is_null().to_numpy()
      remedy = "make the feature a bag, or write one value a row"
      self.require(single, column, "must hold one value a row, not lists", remedy)
    values, is_utf8 = as_text(raw, separator or "|")
    self.require(is_utf8, column, "must be text in UTF-8")
    has_nul = _mask(pc.match_substring(values, "\0"))  # NumPy drops it at the end of strings
    self.require(~has_nul, column, "must not contain the character NUL")
    return values, single & is_utf8 & ~has_nul

  def times(self, column: str, are_dates: bool) -> np.ndarray:
    """Values as seconds, [k] float64."""
    return self._times(column, are_dates, np.zeros(len(self.chunk.rows), bool), 0.0)

  def times_or(self, column: str, missing: float) -> np.ndarray:
    """Values as seconds, [k] float64; `missing` where a cell is blank."""
    raw = self.chunk.table[column]
    blank = _mask(pc.equal(pc.utf8_trim_whitespace(as_text(raw)[0]), ""))
    given = raw.filter(pa.array(~blank))
    return self._times(column, bool(len(given)) and are_dates(given), blank, missing)

  def _times(self, column: str, are_dates: bool, blank: np.ndarray, missing: float) -> np.ndarray:
    raw = self.chunk.table[column]
    values = as_times(raw) if are_dates else as_numbers(raw)[0]
    remedy = "write ISO 8601 such as 2024-05-01T12:00:00Z in all rows, or seconds in all"
    valid = np.abs(values) <= 1e30
    self.require(valid | blank, column, "must be a time", remedy)
    return np.where(blank, missing, np.where(valid, values, 0))

  def lists(self, column: str) -> pa.Array:
    """Lists, or text separated by "|", as strings joined by LIST_SEPARATOR; none is empty."""
    values, is_utf8 = as_text(self.chunk.table[column], LIST_SEPARATOR)
    self.require(is_utf8, column, "must be text in UTF-8")
    if not pa.types.is_nested(self.chunk.table[column].type):
      values = pc.replace_substring_regex(values, r"\s*\|\s*", LIST_SEPARATOR)
      values = pc.utf8_trim_whitespace(values)
    values = pc.utf8_trim(values, LIST_SEPARATOR)
    values = pc.replace_substring_regex(values, f"{LIST_SEPARATOR}+", LIST_SEPARATOR)
    empty = is_utf8 & _mask(pc.equal(values, ""))
    self.require(~empty, column, "must list items", "list those that could be shown")
    return values

  def good_rows(self, columns: dict[str, Any]) -> Chunk:
    """The chunk with converted columns, without its bad rows."""
    tables = [pa.table(columns), self.chunk.table]
    if not self._good.all():
      tables = [table.filter(pa.array(self._good)) for table in tables]
    checked, cells = tables
    rows = self.chunk.rows[self._good]
    return dataclasses.replace(self.chunk, table=checked, cells=cells, rows=rows, broken=())


def is_list(kind: pa.DataType) -> bool:
  """Whether cells of this type are lists, of any or of one length."""
  return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _mask(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
  return (
    values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
  )


def as_text(column: pa.ChunkedArray, separator: str = "|") -> tuple[pa.Array, np.ndarray]:
  """Values as strings, missing ones as ""; and which of them are valid UTF-8, [k] bool.

  Lists are joined by the separator; other nested values are shown as Python shows them.
  """
  values = column.combine_chunks()
  valid = np.ones(len(values), bool)
  if pa.types.is_dictionary(values.type):
    values = values.dictionary_decode()
  if pa.types.is_nested(values.type):
    return pa.array([_join(v, separator) for v in values.to_pylist()], pa.string()), valid
  try:
    return pc.fill_null(pc.cast(values, pa.string()), ""), valid
  except pa.ArrowInvalid:
    cells = [value or b"" for value in values.to_pylist()]
    decoded = [cell.decode("utf-8", "replace") for cell in cells]
    valid = np.array([d.encode() == c for d, c in zip(decoded, cells, strict=True)], bool)
    return pa.array(decoded, pa.string()), valid


def _join(value: Any, separator: str) -> str:
  if isinstance(value, list):
    return separator.join(_join(part, separator) for part in value if part is not None)
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  return "" if value is None else str(value)


def as_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Values as float64, missing ones as NaN; and which of them are numbers or missing, [k] bool.

  The words true and false are 1 and 0, in any case.
  """
  kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
  if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
    values = pc.cast(column, pa.float64(), safe=False).to_numpy()
    return values, np.ones(len(values), bool)
  if pa.types.is_decimal(kind):
    return pc.cast(column, pa.float64()).to_numpy(), np.ones(len(column), bool)
  if pa.types.is_nested(kind) or pa.types.is_temporal(kind) or pa.types.is_null(kind):
    return np.full(len(column), np.nan), np.zeros(len(column), bool)
  cells = as_text(column)[0]
  try:
    values = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.ones(len(values), bool)
  except pa.ArrowInvalid:  # some cell is no number, or has blanks around it
    trimmed = pc.utf8_lower(pc.utf8_trim_whitespace(cells)).to_pandas()
    plain = trimmed.replace({"true": "1", "false": "0"})
    values = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64)
    return values, ~np.isnan(values) | (trimmed == "nan").to_numpy(bool)


def as_times(column: pa.ChunkedArray) -> np.ndarray:
  """Dates or ISO 8601 text as seconds since 1970, in UTC unless an offset is given; else NaN."""
  if pa.types.is_temporal(column.type):
    return _moments(column)
  text = pc.replace_substring_regex(as_text(column)[0], r"\s*UTC$", "Z")  # as BigQuery writes
  moments = pd.to_datetime(text.to_pandas(), format="ISO8601", utc=True, errors="coerce")
  seconds = moments.dt.as_unit("us").astype("int64").to_numpy() / 1e6
  return np.where(moments.isna(), np.nan, seconds)


def _moments(column: pa.ChunkedArray) -> np.ndarray:
  """Dates and timestamps as seconds since 1970; NaN for others, and beyond the year 9999."""
  kind = column.type
  if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
    return np.full(len(column), np.nan)
  is_day = pa.types.is_date32(kind)
  count = pc.fill_null(pc.cast(column, pa.int32() if is_day else pa.int64()), 0).to_numpy()
  seconds = count * 86400.0 if is_day else count / _PER_SECOND[getattr(kind, "unit", "ms")]
  known = _mask(column.is_valid()) & (seconds >= _TIMES[0]) & (seconds <= _TIMES[1])
  return np.where(known, seconds, np.nan)


def are_dates(column: pa.ChunkedArray) -> bool:
  """Whether most of the first values are dates; numbers are if all read as 20240501 does."""
  first = column[:_DECIDING]
  values, is_number = as_numbers(first)
  if is_number.mean() < 0.5:
    return True
  compact = (values == np.floor(values)) & (values >= 1900_01_01) & (values <= 2100_12_31)
  return bool(compact.all() and np.isfinite(as_times(first)).all())
