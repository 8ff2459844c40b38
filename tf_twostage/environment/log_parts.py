"""The rows of a log of one's own, by what they are for."""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_twostage.data.rows import LogRows, TrainingRows


@dataclasses.dataclass(frozen=True, eq=False)
class LogParts:
  """What was held out, and what was not.

  Attributes:
    train: what models are fitted to.
    validation: chooses the epoch.
    test: is reported; None: there are no such rows.
    first: some training rows, in memory.
    earned: the sum of the rewards of the training rows that show an item, [N].
  """

  train: TrainingRows
  validation: LogRows
  test: LogRows | None
  first: LogRows
  earned: np.ndarray
