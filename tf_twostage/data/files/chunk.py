"""A part of a log file in memory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa


class Broken(NamedTuple):
  """A row that cannot be split into columns.

  Attributes:
    row: its number in the file, from 0, without the header.
    column: the column that caused it, or None.
    rule: what the row or the column must do.
    value: what was found.
  """

  row: int
  column: str | None
  rule: str
  value: str


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
  """Consecutive rows of a file.

  Attributes:
    file: the file.
    table: columns of [k] rows.
    rows: [k] int64, the number of each row in the file, from 0, without the header.
    broken: rows of this part of the file that are not in the table.
    line: row number -> line of the file, from 1; None if the file has no lines.
    names: column of `table` -> its name in the file, where these differ.
  """

  file: pathlib.Path
  table: pa.Table
  rows: np.ndarray
  broken: Sequence[Broken] = ()
  line: Callable[[int], int] | None = None
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
