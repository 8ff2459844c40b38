"""Raw columns -> checked columns under their native names: the one way into the program."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data import splits
from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.chunk import Chunk
from tf_twostage.data.files.find import LogFiles
from tf_twostage.data.files.rules import Rule, rule
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.errors import InputError

_DECIDING = 1000  # rows that tell whether times are dates
_NUMBERS = ("propensity", "reward", "position", "ranker_score")


@dataclasses.dataclass(frozen=True)
class Known:
  """Ids that a column may hold.

  Attributes:
    ids: [v] string.
    says: what is asked, such as "must name a known item".
    remedy: what to do.
  """

  ids: pa.Array
  says: str
  remedy: str


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """The good rows of a chunk.

  Attributes:
    table: columns by native or feature name, [m] each, none null: ids, split and features that
      are no numbers as string; propensity, reward and ranker_score float32; position int32; time,
      context and numeric features float64.
    chunk: where they come from.
    index: [m] which rows of the chunk they are.
  """

  table: pa.Table
  chunk: Chunk
  index: np.ndarray

  def column(self, name: str) -> np.ndarray:
    return self.table[name].to_numpy()


def read(
  files: LogFiles,
  schema: LogSchema,
  bad_rows: BadRows,
  *,
  user_features: bool = True,
  known: Mapping[str, Known] | None = None,
) -> Iterator[Rows]:
  """Yields the good rows of a log chunk by chunk, and notes the bad ones.

  Args:
    files: of the log.
    schema: which column is what.
    bad_rows: takes note.
    user_features: whether they are read: not if they stand in a file of their own.
    known: the ids allowed in "user_id" or "item_id"; by default any.

  Raises:
    InputError: a file cannot be read, a column is missing or there twice, or there are no rows.
  """
  check = _Check(schema, bad_rows, known or {})
  wanted = schema.columns(user_features=user_features)
  optional = {role for role in wanted if schema.is_optional(role)}
  for chunk, columns in chunks(files, wanted, optional):
    bad_rows.see(chunk)
    yield check(chunk, columns)
  if not bad_rows.cut:
    files.check_rows(bad_rows.rows)
  if not bad_rows.rows:
    raise InputError(f"{files.place}: the log has no rows; log some traffic first")


def chunks(
  files: LogFiles, wanted: Mapping[str, str], optional: Collection[str] = ()
) -> Iterator[tuple[Chunk, Mapping[str, str]]]:
  """Yields raw chunks, and which column of them is what.

  Args:
    files: of a log or a table.
    wanted: what a column is -> its name in the files.
    optional: what the files may lack; the first file decides.

  Raises:
    InputError: a file cannot be read; a column is missing or there twice.
  """
  columns: dict[str, str] = {}
  for path in files.paths:
    try:
      names = files.format.column_names(path)
      if not names:  # a shard without records
        continue
      lacking = {role for role in optional if not columns and wanted[role] not in names}
      columns = columns or {role: name for role, name in wanted.items() if role not in lacking}
      _require_columns(path, names, columns)
      for chunk in files.format.read(path, list(dict.fromkeys(columns.values()))):
        yield chunk, columns
    except OSError as error:
      raise InputError(
        f"{path}: cannot be read ({error.strerror}); mend its permissions, or name another"
      ) from None


def text(column: pa.ChunkedArray) -> pa.Array:
  """Values as strings, missing ones as ""."""
  values = column.combine_chunks()
  if pa.types.is_dictionary(values.type):
    values = values.dictionary_decode()
  try:
    return pc.fill_null(pc.cast(values, pa.string()), "")
  except pa.ArrowInvalid:  # bytes that are not UTF-8: such an id is unknown
    return pa.array([(value or b"").decode("utf-8", "replace") for value in values.to_pylist()])
  except pa.ArrowNotImplementedError:  # lists and other values with parts
    return pa.array([str(value) for value in values.to_pylist()])


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Values as float64, missing ones as NaN; and which of them are no numbers, [k] bool."""
  kind = column.type
  if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
    values = pc.cast(column, pa.float64(), safe=False).to_numpy()
    return values, np.zeros(len(values), bool)
  if pa.types.is_decimal(kind):
    return pc.cast(column, pa.float64()).to_numpy(), np.zeros(len(column), bool)
  if not (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind)):
    return np.full(len(column), np.nan), np.ones(len(column), bool)
  cells = text(column)
  try:
    values = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    return values, np.zeros(len(values), bool)
  except pa.ArrowInvalid:  # some cell is no number, or has blanks around it
    trimmed = pc.utf8_trim_whitespace(cells).to_pandas()
    values = pd.to_numeric(trimmed, errors="coerce").to_numpy(np.float64)
    return values, np.isnan(values) & (trimmed.str.lower() != "nan").to_numpy(bool)


def times(column: pa.ChunkedArray) -> np.ndarray:
  """Dates or ISO 8601 text as seconds since 1970, in UTC unless an offset is given; else NaN."""
  values = column if pa.types.is_temporal(column.type) else text(column)
  moments = pd.to_datetime(values.to_pandas(), format="ISO8601", utc=True, errors="coerce")
  seconds = moments.dt.as_unit("us").astype("int64").to_numpy() / 1e6
  return np.where(moments.isna(), np.nan, seconds)


# Notes which rows are valid [k], of which column, by what rule, and the remedy where they are not.
Require = Callable[[np.ndarray, str, str, str], None]


def required_numbers(
  raw: pa.ChunkedArray, column: str, wanted: Rule, require: Require
) -> np.ndarray:
  """Values as the rule's dtype, [k]; what breaks the rule is noted, and 0."""
  values, no_number = numbers(raw)
  require(~no_number, column, "must hold numbers", "write plain numbers, dates as seconds")
  with np.errstate(over="ignore", under="ignore"):  # the check sees what float32 cannot hold
    cast = values.astype(wanted.dtype) if wanted.dtype.startswith("float") else values
  valid = wanted.valid(cast)
  require(valid | no_number, column, wanted.says, wanted.remedy)
  return np.where(valid, cast, 0).astype(wanted.dtype)


def required_ids(raw: pa.ChunkedArray, column: str, require: Require) -> pa.Array:
  """Values as strings, [k]; blank ones are noted."""
  ids = text(raw)
  present = pc.not_equal(ids, "").to_numpy(zero_copy_only=False)
  require(present, column, "must not be blank", "give every row its id, or drop these rows")
  return ids


class _Check:
  """Goes over the chunks of one log."""

  def __init__(self, schema: LogSchema, bad_rows: BadRows, known: Mapping[str, Known]):
    self._schema = schema
    self._bad_rows = bad_rows
    self._known = known
    self._dated: bool | None = None  # whether times are dates; most of the first rows decide

  def __call__(self, chunk: Chunk, columns: Mapping[str, str]) -> Rows:
    good = np.ones(len(chunk.rows), bool)
    checked: dict[str, pa.Array | np.ndarray] = {}

    def require(valid: np.ndarray, column: str, says: str, remedy: str) -> None:
      nonlocal good
      self._bad_rows.require(valid, chunk, column, says, remedy)
      good = good & valid

    kinds = {f.name: f.kind for f in (*self._schema.user_features, *self._schema.context_features)}
    for name, column in columns.items():
      raw = chunk.table[column]
      if column == self._schema.time and "time" in checked:  # a time that is context, too
        checked[name] = checked["time"]
      elif name == "time":
        checked[name] = self._times(raw, column, require)
      elif name in _NUMBERS or kinds.get(name) == "numeric":
        checked[name] = required_numbers(raw, column, rule(name), require)
      elif name in ("user_id", "item_id"):
        checked[name] = self._ids(raw, name, column, require)
      else:
        values = checked[name] = text(raw)
        if name == "split":
          require(
            splits.is_label(values.to_pandas()),
            column,
            f"must be {', '.join(splits.NAMES)}",
            "write one of these, or leave `split` out of the schema",
          )
    self._bad_rows.bad += int((~good).sum())
    table = pa.table(checked)
    return Rows(table if good.all() else table.filter(pa.array(good)), chunk, np.flatnonzero(good))

  def _ids(self, raw: pa.ChunkedArray, name: str, column: str, require: Require) -> pa.Array:
    ids = required_ids(raw, column, require)
    if name in self._known:
      known = self._known[name]
      listed = pc.is_in(ids, value_set=known.ids).to_numpy(zero_copy_only=False)
      blank = pc.equal(ids, "").to_numpy(zero_copy_only=False)
      require(listed | blank, column, known.says, known.remedy)
    return ids

  def _times(self, raw: pa.ChunkedArray, column: str, require: Require) -> np.ndarray:
    if self._dated is None and len(raw):
      self._dated = bool(numbers(raw[:_DECIDING])[1].mean() > 0.5)
    values = times(raw) if self._dated else numbers(raw)[0]
    require(
      np.isfinite(values),
      column,
      "must be a time",
      "write ISO 8601 such as 2024-05-01T12:00:00Z in all rows, or seconds in all",
    )
    return values


def _require_columns(path: pathlib.Path, names: list[str], columns: Mapping[str, str]) -> None:
  missing = {role: column for role, column in columns.items() if column not in names}
  if missing:
    shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    # The ids of a users or items file have no role but these two.
    roles = ", ".join(role or "the id (item_key or user_key)" for role in missing)
    null = " (`propensity: null` if there are none)" if "propensity" in missing else ""
    raise InputError(
      f"{path}: missing column(s) {list(dict.fromkeys(missing.values()))}; found {shown}; mend the"
      f" header, or say in the schema which column is {roles}{null}"
    )
  twice = [column for column in columns.values() if names.count(column) > 1]
  if twice:
    raise InputError(
      f"{path}: column {twice[0]!r} is there {names.count(twice[0])} times; keep one of them"
    )
