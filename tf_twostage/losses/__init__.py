"""Off-policy objectives: functions of logits and logged columns, one value per row.

`get("two_stage_ips", num_slates=50)` makes one by name; `LOSSES` holds them all. An *estimator*
(cross_entropy, ips, snips, poem, doubly_robust) takes `policy="softmax"`, the generator alone, or
`policy="two_stage"`, generator and ranker; exact 2-IPS is IPS on the two-stage policy. Every loss
also runs on a part of the catalogue: see `sample_support`.
"""

from __future__ import annotations

from typing import Any

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossTerms, OffPolicyLoss
from tf_twostage.losses.binary_cross_entropy import BinaryCrossEntropy
from tf_twostage.losses.crm import POEM, SNIPS
from tf_twostage.losses.cross_entropy import CrossEntropy
from tf_twostage.losses.doubly_robust import DoublyRobust
from tf_twostage.losses.importance import ImportanceWeights
from tf_twostage.losses.ips import IPS
from tf_twostage.losses.sampled_catalogue import DRAWS, Support, sample_support
from tf_twostage.losses.top_k import TopK
from tf_twostage.losses.two_stage_ips import TwoStageIPS

__all__ = [
  "DRAWS",
  "IPS",
  "LOSSES",
  "POEM",
  "SNIPS",
  "BinaryCrossEntropy",
  "CrossEntropy",
  "DoublyRobust",
  "ImportanceWeights",
  "LossTerms",
  "OffPolicyLoss",
  "Support",
  "TopK",
  "TwoStageIPS",
  "get",
  "options",
  "sample_support",
]

LOSSES: dict[str, type[OffPolicyLoss]] = {
  "cross_entropy": CrossEntropy,
  "binary_cross_entropy": BinaryCrossEntropy,
  "ips": IPS,
  "snips": SNIPS,
  "poem": POEM,
  "doubly_robust": DoublyRobust,
  "top_k": TopK,
  "two_stage_ips": TwoStageIPS,
}


def options(name: str) -> tuple[str, ...]:
  """The names of a loss's own options, those that every Keras layer has left out.

  Raises:
    InputError: no loss has that name.
  """
  if name not in LOSSES:
    raise InputError(f"unknown loss {name!r}; known: {', '.join(sorted(LOSSES))}")
  return LOSSES[name].options()


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
      f"loss {name!r} has no option {', '.join(unknown)}; it has: {', '.join(known)}"
    )
  return LOSSES[name](**given)
