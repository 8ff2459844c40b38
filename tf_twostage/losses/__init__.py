"""Off-policy objectives: functions of logits and logged columns, one value per row.

`get("two_stage_ips", num_slates=50)` makes one by name; `LOSSES` holds them all. An *estimator*
(all but binary_cross_entropy, top_k, two_stage_ips, two_stage_ltr, vanilla_policy_gradient and
safe_slate) takes `policy="softmax"`, the generator alone, or `policy="two_stage"` or `"distinct"`,
generator and ranker; exact 2-IPS is IPS on the two-stage policy. Every loss but safe_slate also
runs on a sampled part of the catalogue: see `sample_support`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tf_twostage.errors import InputError
from tf_twostage.losses.base import LossInputs, LossTerms, OffPolicyLoss
from tf_twostage.losses.crm import POEM, SNIPS
from tf_twostage.losses.cross_entropy import BinaryCrossEntropy, CrossEntropy, RegressionRanking
from tf_twostage.losses.doubly_robust import DoublyRobust
from tf_twostage.losses.importance import ImportanceWeights
from tf_twostage.losses.ips import IPS
from tf_twostage.losses.options import WEIGHT_OPTIONS, Option, read_options
from tf_twostage.losses.safe_slate import SafeSlate
from tf_twostage.losses.sampled_catalogue import DRAWS, Support, sample_support
from tf_twostage.losses.smoothing import (
  ExponentialSmoothing,
  LogarithmicSmoothing,
  WeightedLogLikelihood,
)
from tf_twostage.losses.top_k import TopK
from tf_twostage.losses.two_stage_ips import TwoStageIPS
from tf_twostage.losses.two_stage_ltr import TwoStageLTR
from tf_twostage.losses.vanilla_policy_gradient import VanillaPolicyGradient

__all__ = [
  "DRAWS",
  "IPS",
  "LOSSES",
  "POEM",
  "SNIPS",
  "BinaryCrossEntropy",
  "CrossEntropy",
  "DoublyRobust",
  "ExponentialSmoothing",
  "ImportanceWeights",
  "LogarithmicSmoothing",
  "LossInputs",
  "LossTerms",
  "OffPolicyLoss",
  "Option",
  "RegressionRanking",
  "SafeSlate",
  "Support",
  "TopK",
  "TwoStageIPS",
  "TwoStageLTR",
  "VanillaPolicyGradient",
  "WeightedLogLikelihood",
  "find",
  "get",
  "options",
  "register",
  "resolve",
  "sample_support",
]

LOSSES: dict[str, type[OffPolicyLoss]] = {
  "cross_entropy": CrossEntropy,
  "binary_cross_entropy": BinaryCrossEntropy,
  "regression_ranking": RegressionRanking,
  "ips": IPS,
  "snips": SNIPS,
  "poem": POEM,
  "doubly_robust": DoublyRobust,
  "top_k": TopK,
  "two_stage_ips": TwoStageIPS,
  "two_stage_ltr": TwoStageLTR,
  "vanilla_policy_gradient": VanillaPolicyGradient,
  "weighted_log_likelihood": WeightedLogLikelihood,
  "exponential_smoothing": ExponentialSmoothing,
  "logarithmic_smoothing": LogarithmicSmoothing,
  "safe_slate": SafeSlate,
}
_Loss = TypeVar("_Loss", bound=type[OffPolicyLoss])


def register(name: str) -> Callable[[_Loss], _Loss]:
  """Decorates a loss class so that `get` and the setting `loss` find it by this name."""

  def add(loss: _Loss) -> _Loss:
    if LOSSES.setdefault(name, loss) is not loss:
      raise InputError(f"there is a loss {name!r} already: {LOSSES[name].__name__}")
    return loss

  return add


def find(name: str) -> type[OffPolicyLoss]:
  """The loss of that name: a key of `LOSSES`, or "package.module.Class", which is imported.

  Raises:
    InputError: there is no such loss.
  """
  if name in LOSSES:
    return LOSSES[name]
  module, _, attribute = name.rpartition(".")
  if not module:
    raise InputError(f"unknown loss {name!r}; known: {', '.join(sorted(LOSSES))}")
  try:
    loss = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise InputError(f"cannot import the loss {name!r}: {error}") from error
  if not (isinstance(loss, type) and issubclass(loss, OffPolicyLoss)):
    raise InputError(f"{name} is not a subclass of tf_twostage.losses.OffPolicyLoss")
  return loss


def options(name: str) -> dict[str, Option]:
  """The options of a loss by name, without `slate_size`, `seed` and `reward_scale`, which runs set.

  The fields of `importance` appear one by one: weight_method, weight_cap, weight_floor,
  weight_shrinkage and self_normalize.

  Raises:
    InputError: there is no such loss.
  """
  return read_options(find(name))


def resolve(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Every option of a loss with its value: the given one, or the loss's own default.

  Raises:
    InputError: there is no such loss, it does not have an option, or a value has another type.
  """
  known = options(name)
  _check(name, given, [*known])
  return {
    option: about.checked(f"loss {name!r}: {option}", given.get(option, about.default))
    for option, about in known.items()
  }


def get(name: str, **given: Any) -> OffPolicyLoss:
  """Makes a loss by name.

  Args:
    name: a key of `LOSSES`, or "package.module.Class".
    **given: parameters of its constructor, or any of `options`. What is not given has the default
      of the loss.

  Raises:
    InputError: there is no such loss, it does not have an option, or a value does not fit.
  """
  loss = find(name)
  parameters, known = loss.parameters(), options(name)
  _check(name, given, [*known, *(parameter for parameter in parameters if parameter not in known)])
  for option in known.keys() & given.keys():
    given[option] = known[option].checked(f"loss {name!r}: {option}", given[option])
  weights = {field: given.pop(o) for o, field in WEIGHT_OPTIONS.items() if o in given}
  if weights:
    importance = given.get("importance", parameters["importance"][0].default)
    given["importance"] = dataclasses.replace(importance, **weights)
  return loss(**given)


def _check(name: str, given: Mapping[str, Any], known: list[str]) -> None:
  if unknown := sorted(given.keys() - set(known)):
    raise InputError(
      f"loss {name!r} has no option {', '.join(unknown)}, so it would change nothing; it has:"
      f" {', '.join(known)}"
    )
