"""DataFrames, datasets and arrays as the files of a log: one reader and its checks take all."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tf_twostage.data import kinds
from tf_twostage.data.files.bad_rows import Chunk
from tf_twostage.data.files.locate import Format, LogFiles
from tf_twostage.data.log_schema import RESERVED, FeatureColumn
from tf_twostage.errors import InputError, require

if TYPE_CHECKING:
  import tensorflow as tf

_SEPARATOR = "\x1f"  # the ASCII unit separator: joins the values of a list into one cell


def as_files(
  frame: pd.DataFrame, columns: Mapping[str, str], name: str, ids: Collection[str] = ()
) -> LogFiles:
  """A DataFrame that the file reader can read."""
  names = list(frame.columns)
  numbered = [column for column in columns.values() if not isinstance(column, str)]
  if numbered:
    raise InputError(
      f"{name}: column names must be text, got {numbered}; rename the columns:"
      " frame.rename(columns=str)"
    )
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
    yield Chunk(path, table.select(list(wanted)), np.arange(len(table)))

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


def _text(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def table(
  frame: pd.DataFrame | None,
  key: str | None,
  chosen: Mapping[str, str] | None,
  side: str,
  *,
  taken: Collection[str] = (),
  others: Mapping[str, str | None] = types.MappingProxyType({}),
) -> tuple[LogFiles | None, tuple[FeatureColumn, ...], list[str]]:
  """A frame of users or items as a file, its features, and notes on columns that are not read.

  `others` are columns besides ids and features, by their native names.
  """
  if frame is None:
    if chosen:
      raise InputError(f"{side}_features needs a frame of {side}s; pass it as `{side}s`")
    return None, (), []
  if key is None:
    raise InputError(f"{side}s: the frame needs ids; name their column as `{side}`")
  if key == frame.index.name:
    frame = frame.reset_index()
  found, unread = features(chosen, frame, side, skip=(key, *others.values()), taken=taken)
  columns = {side: key} | {feature.name: feature.column for feature in found}
  columns |= {name: column for name, column in others.items() if column is not None}
  note = (
    f"columns of {side}s that are not read: {', '.join(unread)}; name their kinds in"
    f" {side}_features to read them"
  )
  return as_files(frame, columns, f"{side}s", [key]), found, [note] if unread else []


def features(
  chosen: Mapping[str, str] | None,
  frame: pd.DataFrame,
  side: str,
  *,
  skip: Collection[str | None] = (),
  taken: Collection[str] = (),
) -> tuple[tuple[FeatureColumn, ...], list[str]]:
  """The features of a frame, and the columns that are not read."""
  found: list[FeatureColumn] = []
  unread: list[str] = []
  inferred = chosen is None
  if chosen is None:
    names = [column for column in frame.columns if column not in skip]
    chosen = {c: kinds.infer(frame[c])[0] if names.count(c) == 1 else "" for c in names}
  for column, what in chosen.items():
    if not what:
      unread.append(column)
      continue
    name = column
    if inferred and (column in RESERVED or column in taken):
      name = f"{side}_{column}"
    separator = _separator(frame, column) if what == "bag" else "|"
    found.append(FeatureColumn(name, what, column, separator))
  return tuple(found), unread


def sequences(chosen: Mapping[str, Any], frame: pd.DataFrame) -> tuple[FeatureColumn, ...]:
  """The sequence features of a log by name, each a column or a dict as in schema files."""
  specs = {n: {"column": s} if isinstance(s, str) else s for n, s in chosen.items()}
  return tuple(
    FeatureColumn(n, **{"kind": "sequence", "separator": _separator(frame, s["column"]), **s})
    for n, s in specs.items()
  )


def _separator(frame: pd.DataFrame, column: str) -> str:
  """What separates the values of a bag or a sequence once its cells are text."""
  if column in frame and kinds.holds_lists(frame[column]):
    return _SEPARATOR
  return (column in frame and kinds.separates(frame[column].dropna().astype(str))) or "|"


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
  """A column of a batch: text decoded, vectors as lists, and those of text without padding."""
  cells = values.to_list() if hasattr(values, "to_list") else values.numpy().tolist()
  if cells and isinstance(cells[0], list) and not values.dtype.is_floating:
    return [[v for v in map(_text, cell) if v] for cell in cells]
  return [_text(v) if isinstance(v, bytes) else v for v in cells]


def from_feedback(feedback: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The arguments of `BanditLog.from_pandas` for Open Bandit Pipeline's `bandit_feedback`."""
  needed = ("n_rounds", "n_actions", "action", "reward", "context")
  missing = [key for key in needed if key not in feedback]
  if missing:
    raise InputError(f"{name}: missing key(s) {missing}; found {sorted(map(str, feedback))}")
  rounds, num_items = int(feedback["n_rounds"]), int(feedback["n_actions"])
  keys = ("action", "reward", "pscore", "position")
  columns = {key: np.asarray(feedback[key]) for key in keys if feedback.get(key) is not None}
  for key, values in columns.items():
    if values.shape != (rounds,):
      raise InputError(f"{name}: {key} must have the shape ({rounds},), got {values.shape}")
  context = _matrix(name, "context", feedback["context"], rounds)
  distinct, user = np.unique(context, axis=0, return_inverse=True)
  arms = np.zeros((num_items, 0))
  if feedback.get("action_context") is not None:
    arms = _matrix(name, "action_context", feedback["action_context"], num_items)
    if np.array_equal(arms, np.eye(num_items)):
      arms = arms[:, :0]
  tables: dict[str, Any] = {}
  for side, key, prefix, matrix in (
    ("user", "user", "context", distinct),
    ("item", "action", "action_context", arms),
  ):
    names = [f"{prefix}_{i}" for i in range(matrix.shape[1])]
    tables[f"{side}s"] = pd.DataFrame(matrix, columns=names).rename_axis(key).reset_index()
    tables[f"{side}_features"] = dict.fromkeys(names, "numeric")
  return {
    "frame": pd.DataFrame({"user": user.reshape(-1), **columns}),
    "user": "user",
    "item": "action",
    "reward": "reward",
    "propensity": "pscore" if "pscore" in columns else None,
    "position": "position" if "position" in columns else None,
    **tables,
  }


def _matrix(name: str, key: str, values: Any, rows: int) -> np.ndarray:
  matrix = np.asarray(values, np.float64)
  if matrix.ndim != 2 or len(matrix) != rows or not matrix.shape[1]:
    raise InputError(f"{name}: {key} must be [{rows}, d] numbers with d > 0, got {matrix.shape}")
  finite = np.isfinite(matrix).all(axis=1)
  require(finite, f"{name}: {key}", "must be finite", "fill or drop these rows")
  return matrix
