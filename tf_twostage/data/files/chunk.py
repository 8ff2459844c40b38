"""A part of a log file in memory, with what is needed to say where a row stands."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa


class Broken(NamedTuple):
  """A row that cannot be taken apart into columns.

  Attributes:
    row: its number in the file, from 0, header aside.
    line: the line it begins at, from 1; None in files without lines.
    column: the column that broke it, or None.
    rule: what it must do.
    value: what was found.
    remedy: what to do.
    ends: whether nothing of the file behind it can be read.
  """

  row: int
  line: int | None
  column: str | None
  rule: str
  value: str
  remedy: str = "mend or drop these rows"
  ends: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
  """Consecutive rows of a file as raw columns.

  Attributes:
    file: where they stand.
    table: the columns by their names in the file, [k] each: text of a CSV, values with types of a
      Parquet file or of records. `table.to_pandas()` is the data frame.
    rows: [k] int64, the number of each row in its file, from 0, header aside.
    broken: rows of this part of the file that are not in the table.
    lines: gives the line of each row in the file, from 1, [k]; None in files without lines.
  """

  file: pathlib.Path
  table: pa.Table
  rows: np.ndarray
  broken: Sequence[Broken] = ()
  lines: Callable[[], np.ndarray] | None = None

  def place(self, index: int) -> tuple[int, int | None]:
    """Row and line of the table's row `index`."""
    return int(self.rows[index]), None if self.lines is None else int(self.lines()[index])
