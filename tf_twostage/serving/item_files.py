"""Files that say which items came and which went."""

from __future__ import annotations

import pathlib

from tf_twostage.data import feature_tables
from tf_twostage.data.feature_tables import strings
from tf_twostage.data.log_schema import FeatureColumn
from tf_twostage.data.schema import Bag, Numeric, Schema, SparseVector
from tf_twostage.errors import InputError
from tf_twostage.serving.catalogue import NewItems

_TITLE = "title"


def read_new(path: pathlib.Path, schema: Schema) -> NewItems:
  """Items to add: CSV or Parquet with the schema's item features, and "title".

  Bags separate their values by "|".

  Raises:
    InputError: the file cannot be read, or columns or values are missing or wrong.
  """
  features = [f for f in schema.item if f is not schema.item_id]
  vectors = [f.name for f in features if isinstance(f, SparseVector)]
  if vectors:
    raise InputError(f"{path}: {', '.join(vectors)}: sparse vectors do not fit into a table")
  columns = [
    FeatureColumn(
      f.name,
      "bag" if isinstance(f, Bag) else "numeric" if isinstance(f, Numeric) else "categorical",
    )
    for f in features
  ]
  table = feature_tables.read(path, schema.item_id.name, columns, _TITLE)
  raw = {
    column.name: feature_tables.split(values, column.separator) if column.kind == "bag" else values
    for column in columns
    for values in [table.columns[column.name]]
  }
  return NewItems({schema.item_id.name: strings(table.ids), **raw}, table.columns[_TITLE])


def read_removed(path: pathlib.Path) -> list[str]:
  """Ids of items to remove: a line each.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: not readable as a list of item ids ({error})") from error
