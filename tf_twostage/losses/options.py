"""Options of a loss that text can express, read from the constructors and their docstrings."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple

from tf_twostage.errors import checked_type
from tf_twostage.losses.base import OffPolicyLoss
from tf_twostage.losses.importance import ImportanceWeights

# A run sets these from its own settings.
SET_BY_RUN = ("slate_size", "seed", "reward_scale", "examination")
# Options that stand for the fields of ImportanceWeights.
WEIGHT_OPTIONS = {
  "weight_method": "method",
  "weight_cap": "cap",
  "weight_floor": "floor",
  "weight_shrinkage": "shrinkage",
  "self_normalize": "self_normalize",
}
_KINDS = (bool, int, float, str)


class Option(NamedTuple):
  """One option of a loss.

  Attributes:
    kind: bool, int, float or str.
    default: the value if the option is not given.
    help: its description in the docstring.
  """

  kind: type
  default: Any
  help: str

  def checked(self, name: str, value: Any) -> Any:
    """The value in the option's type; a function stays as it is, and so does None if a default.

    Raises:
      InputError: the value has another type.
    """
    if callable(value) or (value is None and self.default is None):
      return value
    return checked_type(name, value, self.kind)


def read_options(loss: type[OffPolicyLoss]) -> dict[str, Option]:
  """The options of a loss by name, without those in `SET_BY_RUN`."""
  found: dict[str, Option] = {}
  for name, (parameter, constructor) in loss.parameters().items():
    if isinstance(parameter.default, ImportanceWeights):
      hints = typing.get_type_hints(ImportanceWeights)
      texts = _texts(ImportanceWeights.__doc__, hints)
      found |= {
        option: Option(hints[field], getattr(parameter.default, field), texts[field])
        for option, field in WEIGHT_OPTIONS.items()
      }
    elif name not in SET_BY_RUN:
      hint = typing.get_type_hints(constructor)[name]
      kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind in _KINDS]
      if kinds:
        texts = _texts(constructor.__doc__, loss.parameters())
        found[name] = Option(kinds[0], parameter.default, texts.get(name, ""))
  return found


def _texts(docstring: str | None, names: Iterable[str]) -> dict[str, str]:
  """The texts that follow "name:" in a docstring, by name."""
  text = inspect.cleandoc(docstring or "").split("\n\nReferences:")[0]
  _, *parts = re.split(rf"^ *({'|'.join(names)}): ", text, flags=re.MULTILINE)
  return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
