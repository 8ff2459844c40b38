"""Off-policy objectives: functions of logits and logged columns, one value per row.

`get("two_stage_ips", num_slates=50)` makes one by name; `LOSSES` holds them all.
"""

from __future__ import annotations

import inspect
from typing import Any

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossTerms, OffPolicyLoss
from tf_twostage.losses.binary_cross_entropy import BinaryCrossEntropy
from tf_twostage.losses.cross_entropy import CrossEntropy
from tf_twostage.losses.importance import ImportanceWeights
from tf_twostage.losses.ips import IPS
from tf_twostage.losses.two_stage_ips import TwoStageIPS

__all__ = [
  "IPS",
  "LOSSES",
  "BinaryCrossEntropy",
  "CrossEntropy",
  "ImportanceWeights",
  "LossTerms",
  "OffPolicyLoss",
  "TwoStageIPS",
  "get",
  "options",
]

LOSSES: dict[str, type[OffPolicyLoss]] = {
  "cross_entropy": CrossEntropy,
  "binary_cross_entropy": BinaryCrossEntropy,
  "ips": IPS,
  "two_stage_ips": TwoStageIPS,
}


def options(name: str) -> tuple[str, ...]:
  """The names of a loss's own options, those that every Keras layer has left out.

  Raises:
    InputError: no loss has that name.
  """
  if name not in LOSSES:
    raise InputError(f"unknown loss {name!r}; known: {', '.join(sorted(LOSSES))}")
  parameters = inspect.signature(LOSSES[name]).parameters.values()
  return tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)


def get(name: str, **given: Any) -> OffPolicyLoss:
  """The loss of that name.

  Args:
    name: a key of `LOSSES`.
    **given: its options; see `options`.

  Raises:
    InputError: no loss has that name, or the loss has no such option.
  """
  known = options(name)
  unknown = sorted(set(given) - set(known))
  if unknown:
    raise InputError(
      f"loss {name!r} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}"
    )
  return LOSSES[name](**given)
