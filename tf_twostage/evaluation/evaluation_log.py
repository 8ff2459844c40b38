"""What policies are evaluated on: rows that they have not learned from, and the truth where known.

An environment says what its evaluation log is; `reward_model` and `values` read it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage.data.rows import LogRows
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import Codes

# From rows of the log, [m] int, to a number for each item of the catalogue in each, [m, N].
ByRow = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationLog:
  """A log, and what is known beyond it.

  Attributes:
    log: n rows with propensities. Its context is what a policy sees when it decides, so it must
      not depend on the action.
    num_items: size of the catalogue, N.
    stage: differs wherever the log does, for later stages to depend on.
    notes: what a reader of the estimates must know, a sentence each.
    expected_rewards: r(x_i, a), the reward that each item would have had; None: not known.
    logging_probabilities: β(a | x_i); None: known for the logged actions alone.
    grouped: whether rows of one user depend on each other; not where users are mere combinations
      of features.

  Raises:
    InputError: the log has no rows or no propensities.
  """

  log: LogRows
  num_items: int
  stage: str
  notes: tuple[str, ...] = ()
  expected_rewards: ByRow | None = None
  logging_probabilities: ByRow | None = None
  grouped: bool = True

  def __post_init__(self):
    if not len(self.log):
      raise InputError("evaluation log: no rows; evaluate on a log that has some")
    if self.log.propensity is None:
      raise InputError("evaluation log: it has no propensities; estimate them before")

  def __len__(self) -> int:
    return len(self.log)

  @property
  def groups(self) -> np.ndarray | None:
    """Whose rows depend on each other, [n]; None: each row stands for itself."""
    return self.log.user_index if self.grouped else None

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

  def inputs(self, rows: np.ndarray, users: Codes) -> dict[str, Any]:
    """What models read of these rows [m], given the codes of all users.

    Returns:
      "user" {name: [m, ...]}, "context" {name: [m]} raw, "user_index" [m].
    """
    index = self.log.user_index[rows]
    return {
      "user": {name: tf.gather(codes, index) for name, codes in users.items()},
      "context": {name: tf.constant(values[rows]) for name, values in self.log.context.items()},
      "user_index": tf.constant(index),
    }
