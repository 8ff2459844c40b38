"""DataFrames as the files of a log: the same reader and the same checks take both."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tf_twostage.data.files import Chunk, Format, LogFiles
from tf_twostage.data.log_schema import RESERVED, FeatureColumn
from tf_twostage.errors import InputError

if TYPE_CHECKING:
  import tensorflow as tf

_SEPARATOR = "\x1f"  # the ASCII unit separator: joins the values of a list into one cell
_TEXT_SEPARATORS = "|;"
_FEW = 20  # a text column with more rows than this and no repeated value identifies its row
_ROWS = 1 << 17


def as_files(
  frame: pd.DataFrame, columns: Mapping[str, str], name: str, ids: Collection[str] = ()
) -> LogFiles:
  """A DataFrame that the file reader can read."""
  names = list(frame.columns)
  for role, column in columns.items():
    if column not in names:
      shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
      raise InputError(f"{name}: no column {column!r} ({role}); found {shown}; name one of these")
    if names.count(column) > 1:
      raise InputError(
        f"{name}: column {column!r} is there {names.count(column)} times; keep one of them"
      )
  table = pa.table({c: _array(frame[c], is_id=c in ids) for c in dict.fromkeys(columns.values())})

  def read(path: pathlib.Path, wanted: Sequence[str]) -> Iterator[Chunk]:
    for start in range(0, len(table), _ROWS):
      part = table.select(list(wanted)).slice(start, _ROWS)
      yield Chunk(path, part, start + np.arange(len(part)))

  in_memory = Format(lambda _: table.column_names, read)
  return LogFiles(name, (pathlib.Path(name),), in_memory)


def _array(values: pd.Series, *, is_id: bool) -> pa.Array:
  if is_id and values.dtype.kind == "f" and not (values.dropna() % 1).any():
    values = values.astype("Int64")  # whole numbers become floats where some are missing
  try:
    array = pa.Array.from_pandas(values)
  except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of several types
    array = pa.array([None if pd.isna(value) else str(value) for value in values], pa.string())
  return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _holds_lists(values: pd.Series) -> bool:
  first = next((v for v in values if not (np.ndim(v) == 0 and pd.isna(v))), None)
  return isinstance(first, list | tuple | np.ndarray)


def _text(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def table(
  frame: pd.DataFrame | None,
  key: str | None,
  kinds: Mapping[str, str] | None,
  side: str,
  *,
  taken: Collection[str] = (),
  title: str | None = None,
) -> tuple[LogFiles | None, tuple[FeatureColumn, ...], list[str]]:
  """A frame of users or items as a file, its features, and notes on columns that are not read."""
  if frame is None:
    if kinds:
      raise InputError(f"{side}_features needs a frame of {side}s; pass it as `{side}s`")
    return None, (), []
  if key is None:
    raise InputError(f"{side}s: the frame needs ids; name their column as `{side}`")
  if key == frame.index.name:
    frame = frame.reset_index()
  found, unread = features(kinds, frame, side, skip=(key, title), taken=taken)
  columns = {side: key} | {feature.name: feature.column for feature in found}
  columns |= {} if title is None else {"title": title}
  note = (
    f"columns of {side}s that are not read: {', '.join(unread)}; name their kinds in"
    f" {side}_features to read them"
  )
  return as_files(frame, columns, f"{side}s", [key]), found, [note] if unread else []


def features(
  kinds: Mapping[str, str] | None,
  frame: pd.DataFrame,
  side: str,
  *,
  skip: Collection[str | None] = (),
  taken: Collection[str] = (),
) -> tuple[tuple[FeatureColumn, ...], list[str]]:
  """The features of a frame, and the columns that are not read."""
  found: list[FeatureColumn] = []
  unread: list[str] = []
  chosen = dict(kinds or {})
  if kinds is None:
    names = [column for column in frame.columns if column not in skip]
    chosen = {c: kind(frame[c]) if names.count(c) == 1 else "" for c in names}
  for column, what in chosen.items():
    if not what:
      unread.append(column)
      continue
    name = column
    if kinds is None and (column in RESERVED or column in taken):
      name = f"{side}_{column}"
    separator = _separator(frame[column]) if what == "bag" and column in frame else "|"
    found.append(FeatureColumn(name, what, column, separator))
  return tuple(found), unread


def kind(values: pd.Series) -> str:
  """The kind of feature that a column looks like; "" for dates and for text that never repeats.

  Numbers are numeric; lists, and text where "|" or ";" separates values, are bags; all else is
  categorical.
  """
  if pd.api.types.is_datetime64_any_dtype(values.dtype):
    return ""
  if pd.api.types.is_bool_dtype(values.dtype):
    return "categorical"
  if pd.api.types.is_numeric_dtype(values.dtype):
    return "numeric"
  if _holds_lists(values) or _separates(values):
    return "bag"
  cells = values.dropna().astype(str)
  return "" if len(cells) > _FEW and cells.is_unique else "categorical"


def _separates(values: pd.Series) -> str:
  """The character that separates the values of bags in these cells, or ""."""
  if isinstance(values.dtype, pd.CategoricalDtype):
    return ""
  cells = values.dropna().astype(str)
  for separator in _TEXT_SEPARATORS:
    several = cells.str.contains(separator, regex=False)
    if several.mean() > 0.2:
      return separator
  return ""


def _separator(values: pd.Series) -> str:
  return _SEPARATOR if _holds_lists(values) else _separates(values) or "|"


def from_dataset(dataset: tf.data.Dataset, item: str) -> pd.DataFrame:
  """The rows of a finite dataset of dicts, single or in batches."""
  spec = dataset.element_spec
  if not isinstance(spec, Mapping) or item not in spec:
    raise InputError(f"dataset: elements must be dicts with {item!r}; got {spec}")
  if int(dataset.cardinality()) == -1:
    raise InputError("dataset: it never ends; use .take(n), or leave .repeat() out")
  if spec[item].shape.rank == 0:
    dataset = dataset.ragged_batch(1024)
  parts = [pd.DataFrame({n: _cells(v) for n, v in batch.items()}) for batch in dataset]
  if not parts:
    raise InputError("dataset: it has no rows; log some traffic first")
  return pd.concat(parts, ignore_index=True)


def _cells(values: Any) -> Any:
  """A column of a batch: text decoded, vectors as lists without padding."""
  cells = values.to_list() if hasattr(values, "to_list") else values.numpy().tolist()
  if cells and isinstance(cells[0], list):
    return [[v for v in map(_text, cell) if v] for cell in cells]
  return [_text(v) if isinstance(v, bytes) else v for v in cells]
