"""The rows of a log by slate and slot."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_twostage.errors import InputError

LONGEST = 1000  # slots; matrices have a column for each
UNIQUE_IDS = (
  "make slate ids unique in the whole log, such as by the columns of user and request together:"
  " `slate_id: [USER COLUMN, REQUEST COLUMN]`"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Slates:
  """S slates of at most L slots.

  Attributes:
    rows: the row of the log in slot k of slate s, [S, L] int32; -1 where no row has that slot.
    user_index: the user of each slate, [S] int32.
  """

  rows: np.ndarray
  user_index: np.ndarray

  @classmethod
  def of_rows(
    cls, slate: np.ndarray, position: np.ndarray, user_index: np.ndarray, name: str = "log"
  ) -> Slates:
    """Slates from columns of a log, [n] each: number of the slate, 0-based slot, and user.

    Slates are in the order of their numbers.

    Raises:
      InputError: two rows share a slot, a slate has rows of several users, or slots are too many.
    """
    slots = int(position.max()) + 1
    if slots > LONGEST:
      raise InputError(
        f"{name}: positions reach {slots - 1}, of at most {LONGEST - 1}; a position is the slot in"
        " a slate, from 0"
      )
    _, first, at = np.unique(slate, return_index=True, return_inverse=True)
    users = user_index[first]
    foreign = np.flatnonzero(user_index != users[at])
    if foreign.size:
      raise InputError(
        f"{name}: {foreign.size} rows, the first of them row {foreign[0]}, have a slate id that"
        f" another user has; {UNIQUE_IDS}"
      )
    cell = at.astype(np.int64) * slots + position
    taken, times = np.unique(cell, return_counts=True)
    if len(taken) < len(cell):
      twice = np.flatnonzero(np.isin(cell, taken[times > 1]))
      raise InputError(
        f"{name}: {len(twice)} rows, the first of them row {twice[0]}, have the slate and position"
        " of another row; drop copies, or mend slate ids and positions"
      )
    rows = np.full(len(users) * slots, -1, np.int32)
    rows[cell] = np.arange(len(cell), dtype=np.int32)
    return cls(rows.reshape(-1, slots), users)

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def mask(self) -> np.ndarray:
    """Which slots have a row, [S, L] bool."""
    return self.rows >= 0

  def of(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
    """A column of the log, [n], by slate and slot, [S, L]; `fill` where there is no row."""
    return np.where(self.mask, values[self.rows], np.asarray(fill, values.dtype))
