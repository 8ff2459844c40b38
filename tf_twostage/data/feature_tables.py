"""Tables of users and items; raw columns -> features with their vocabularies."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import types
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.columns import NUMBER, CheckedColumns
from tf_twostage.data.files.locate import LogFiles, locate
from tf_twostage.data.files.reader import chunks
from tf_twostage.data.log_schema import AVAILABLE, FeatureColumn
from tf_twostage.data.schema import Bag, Categorical, Feature, FeatureTable, embedding, unit_range
from tf_twostage.errors import InputError, require

VECTORS = ".npy"  # ends the name of a file of vectors, which stands for a column


@dataclasses.dataclass(frozen=True, eq=False)
class RawTable:
  """Rows of a users or items file, in its order."""

  ids: pa.Array  # [rows] string, distinct and not blank
  # features and the title by name, [rows] str or float64; vectors [rows, width] float32
  columns: Mapping[str, np.ndarray]


def read(
  path: str | os.PathLike | LogFiles,
  key: str,
  features: Sequence[FeatureColumn],
  title: str | None = None,
  intervals: Mapping[str, str] = types.MappingProxyType({}),
) -> RawTable:
  """Reads a users or items file: CSV or Parquet, or whatever a log may be."""
  found = locate(path)
  beside = {f.name: f.column for f in features if f.column.endswith(VECTORS)}
  wanted = {"": key} | {f.name: f.column for f in features if f.name not in beside}
  if title is not None:
    wanted["title"] = title
  wanted |= intervals
  bad_rows = BadRows()
  ids: list[pa.Array] = []
  parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted if name}
  seen: set[str] = set()
  of_kind = {feature.name: feature.kind for feature in features}
  separators = {feature.name: feature.separator for feature in features}
  for chunk in chunks(found, wanted):
    columns = CheckedColumns(chunk, bad_rows)
    ids.append(columns.ids(""))
    named = ids[-1].to_pandas()
    repeated = (named.duplicated() | named.isin(seen)) & (named != "")
    columns.require(~repeated, "", "must not repeat", "keep one row of each")
    seen.update(named)
    for name, values in parts.items():
      if of_kind.get(name) == "numeric":
        values.append(columns.numbers(name, NUMBER))
      elif of_kind.get(name) == "embedding":
        width = values[0].shape[1] if values else 0
        values.append(columns.vectors(name, separators[name], width))
      elif name in intervals:
        values.append(columns.times_or(name, -np.inf if name == AVAILABLE[0] else np.inf))
      else:
        is_bag = of_kind.get(name) == "bag"
        values.append(strings(columns.text(name, separators[name] if is_bag else None)))
  bad_rows.settle("fail")
  if not bad_rows.rows:
    raise InputError(f"{found.place}: the file has no rows; write one for each {key}")
  tables = {name: np.concatenate(values) for name, values in parts.items()}
  for name, file in beside.items():
    tables[name] = _vectors(found.paths[0].parent / file, found.place, bad_rows.rows)
  return RawTable(pa.chunked_array(ids).combine_chunks(), tables)


def _vectors(path: pathlib.Path, table: str, rows: int) -> np.ndarray:
  """The vectors in a NumPy file, [rows, width] float32."""
  try:
    values = np.load(path)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f"{path}: not a readable .npy ({error}); write it with numpy.save, a row for each row of"
      f" {table}"
    ) from None
  if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
    raise InputError(f"{path}: holds no array of numbers with two axes; save one, [rows, width]")
  if len(values) != rows or not values.shape[1]:
    raise InputError(
      f"{path}: the array is {values.shape}, but {table} has {rows} rows; save a vector for each,"
      " in the same order"
    )
  valid = NUMBER.valid(values.astype(np.float64)).all(axis=1)
  require(valid, str(path), NUMBER.text, "write zeros where there is no vector")
  return values.astype(np.float32)


def strings(values: pa.Array | Sequence[str]) -> np.ndarray:
  """An array of str objects: NumPy's unicode arrays give each cell the width of the longest."""
  return np.array(values.to_pylist() if isinstance(values, pa.Array) else values, dtype=object)


def build(
  features: Sequence[FeatureColumn], columns: Mapping[str, np.ndarray]
) -> tuple[list[Feature], dict[str, np.ndarray]]:
  """Features with vocabularies and ranges as the values have them, and the raw feature table."""
  built: list[Feature] = []
  table: dict[str, np.ndarray] = {}
  for spec in features:
    values = columns[spec.name]
    if spec.kind == "numeric":
      built.append(unit_range(spec.name, values))
    elif spec.kind == "embedding":
      built.append(embedding(spec.name, values))
    elif spec.kind == "categorical":
      built.append(Categorical(spec.name, _distinct(spec, values)))
    else:
      values = split(values, spec.separator)
      built.append(Bag(spec.name, _distinct(spec, values), max_length=values.shape[1]))
    table[spec.name] = values
  return built, table


def split(cells: np.ndarray, separator: str) -> np.ndarray:
  """The values of bags, padded with "": [rows] to [rows, width] str."""
  parts = pd.Series(cells).str.split(separator, regex=False)
  bags = [[value for part in cell if (value := part.strip())] for cell in parts]
  sizes = np.array([*map(len, bags)], int)
  table = np.full((len(bags), sizes.max(initial=1)), "", dtype=object)
  table[np.arange(table.shape[1]) < sizes[:, np.newaxis]] = [*itertools.chain(*bags)]
  return table


def to_parquet(table: FeatureTable) -> bytes:
  """A feature table as a Parquet file; an array [U, M] becomes a column of lists."""
  columns = {name: np.asarray(values) for name, values in table.items()}
  return pd.DataFrame({n: list(v) if v.ndim > 1 else v for n, v in columns.items()}).to_parquet()


def from_parquet(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The feature table in a file of `to_parquet`."""
  columns = {str(name): column.to_numpy() for name, column in pd.read_parquet(path).items()}
  return {n: np.stack(list(v)) if isinstance(v[0], np.ndarray) else v for n, v in columns.items()}


def natural_order(values: Sequence[str]) -> np.ndarray:
  """Indices that sort strings: as numbers if all are whole numbers, otherwise as text."""
  if all(value.isdecimal() and value.isascii() and len(value) < 19 for value in values):
    return np.lexsort((np.array(values, dtype=str), np.array(values, dtype=np.int64)))
  return np.array(sorted(range(len(values)), key=values.__getitem__))


def _distinct(spec: FeatureColumn, values: np.ndarray) -> tuple[str, ...]:
  distinct = [value for value in {*values.flat} if value]
  if not distinct:
    raise InputError(
      f"column {spec.column!r} holds no value at all; leave the feature {spec.name!r} out of the"
      " schema"
    )
  return tuple(distinct[i] for i in natural_order(distinct))
