"""What policies are evaluated on: rows that they have not learned from, and the truth where known.

An environment says what its evaluation log is; `reward_model` and `values` read it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from tf_twostage.bandit_log import BanditLog
from tf_twostage.errors import InputError

# From rows of the log, [m] int, to a number for each item of the catalogue in each, [m, N].
ByRow = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationLog:
  """A log, and what is known beyond it.

  Attributes:
    log: n rows with propensities. Its context is what a policy sees when it decides, so it must
      not depend on the action.
    stage: differs wherever the log does, for later stages to depend on.
    notes: what a reader of the estimates must know, a sentence each.
    expected_rewards: r(x_i, a), the reward that each item would have had; None: not known.
    logging_probabilities: β(a | x_i); None: known for the logged actions alone.

  Raises:
    InputError: the log has no rows or no propensities.
  """

  log: BanditLog
  stage: str
  notes: tuple[str, ...] = ()
  expected_rewards: ByRow | None = None
  logging_probabilities: ByRow | None = None

  def __post_init__(self):
    if not len(self.log):
      raise InputError("evaluation log: no rows; evaluate on a log that has some")
    if self.log.propensity is None:
      raise InputError("evaluation log: it has no propensities; estimate them before")

  def __len__(self) -> int:
    return len(self.log)

  @functools.cached_property
  def situations(self) -> tuple[np.ndarray, np.ndarray]:
    """Each user in each context once: its first row [S], and which of these a row is [n].

    Policies and reward models answer the same to all rows of one situation.
    """
    columns = [self.log.user_index.astype(np.float64), *self.log.context.values()]
    _, first, index = np.unique(
      np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first, index.reshape(-1)
