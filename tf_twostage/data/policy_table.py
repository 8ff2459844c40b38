"""A policy in a file: a probability for each item, or for each item in each position."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tf_twostage.data.files.bad_rows import BadRows
from tf_twostage.data.files.columns import CheckedColumns, IdSet, Rule
from tf_twostage.data.files.locate import locate
from tf_twostage.data.files.reader import chunks
from tf_twostage.errors import InputError

_TOLERANCE = 1e-3  # probabilities are often written with a few digits
_COLUMNS = {"item_id": "item_id", "position": "position", "probability": "probability"}
_PROBABILITY = Rule("float64", lambda x: (x >= 0) & (x <= 1), "must lie in [0, 1]")


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyTable:
  """A policy that does not look at the user."""

  positions: np.ndarray | None  # [P] int; None: the same in all positions
  probabilities: np.ndarray  # [P, N], or [1, N]; each row sums to 1

  def rows(self, position: np.ndarray | None) -> np.ndarray:
    """For positions [n] of a log, the row of `probabilities`, [n]; for None 0."""
    if self.positions is None:
      return np.zeros(1 if position is None else len(position), int)
    if position is None:
      raise InputError("the policy differs by position, but the log has none; leave it out of both")
    place = np.clip(np.searchsorted(self.positions, position), 0, len(self.positions) - 1)
    unknown = self.positions[place] != position
    if unknown.any():
      raise InputError(
        f"the policy knows the positions {self.positions.tolist()}, but the log has"
        f" {int(position[unknown][0])}; add its probabilities"
      )
    return place


def read(path: str | os.PathLike, item_ids: np.ndarray) -> PolicyTable:
  """Reads `item_id`, `probability` and perhaps `position`; items left out have probability 0."""
  bad_rows = BadRows()
  parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
  catalogue = pa.array(item_ids.tolist(), pa.string())
  remedy = "leave out what is not in the catalogue"
  known = IdSet(catalogue, "must name a known item", remedy)
  by_position = False
  for chunk in chunks(locate(path), _COLUMNS, optional=("position",)):
    columns = CheckedColumns(chunk, bad_rows)
    index = pc.index_in(columns.ids("item_id", known), value_set=catalogue)
    probability = columns.numbers("probability", _PROBABILITY)
    by_position = "position" in chunk.names
    position = columns.numbers("position") if by_position else np.zeros(len(index), np.int32)
    parts.append((pc.fill_null(index, -1).to_numpy(), position, probability))
  bad_rows.settle("fail")
  if not bad_rows.rows:
    raise InputError(f"{path}: the policy has no rows; write item_id and probability")
  item, position, probability = (np.concatenate(column) for column in zip(*parts, strict=True))
  positions, place = np.unique(position, return_inverse=True)
  cells = place * len(item_ids) + item
  if len(np.unique(cells)) < len(cells):
    raise InputError(f"{path}: an item is repeated in one position; keep one row of each")
  table = np.zeros((len(positions), len(item_ids)))
  table.reshape(-1)[cells] = probability
  sums = table.sum(axis=1)
  off = np.flatnonzero(np.abs(sums - 1) > _TOLERANCE)
  if off.size:
    where = f" of position {positions[off[0]]}" if by_position else ""
    raise InputError(
      f"{path}: the probabilities{where} sum to {sums[off[0]]:.6g}, not to 1; write a distribution"
      " over the catalogue"
    )
  return PolicyTable(positions if by_position else None, table / sums[:, None])
