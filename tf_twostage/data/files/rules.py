"""What the numbers of a log must be: one rule a column, wherever the column comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_INT_MAX = np.iinfo(np.int32).max
_MEND = "mend or drop these rows"


class Rule(NamedTuple):
  """What a column must be.

  Attributes:
    dtype: its type in memory.
    valid: which of its values obey, [k] -> [k] bool.
    says: what is asked, such as "must be finite".
    remedy: what to do.
  """

  dtype: str
  valid: Callable[[np.ndarray], np.ndarray]
  says: str
  remedy: str = _MEND


_INDEX = Rule(
  "int32", lambda x: (x >= 0) & (x <= _INT_MAX) & (x % 1 == 0), "must be a whole number >= 0"
)
# Kernels flush float32 subnormals to zero, and a weight divides by the propensity.
_PROPENSITY = Rule(
  "float32",
  lambda x: (x >= np.finfo(np.float32).tiny) & (x <= 1),
  "must lie in (0, 1]",
  "log the probability of the single draw; mend or drop these rows",
)
RULES = {
  "user_index": _INDEX,
  "action": _INDEX,
  "propensity": _PROPENSITY,
  "reward": Rule("float32", lambda x: np.isfinite(x) & (x >= 0), "must be finite and >= 0"),
  "position": _INDEX,
  "ranker_score": Rule("float32", np.isfinite, "must be finite"),
}
NUMBER = Rule("float64", np.isfinite, "must be finite")


def rule(name: str) -> Rule:
  """The rule of a column by its native name; any finite number if it has none of its own."""
  return RULES.get(name, NUMBER)
