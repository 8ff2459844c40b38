"""Exceptions that end a command in one message, without a stack trace."""

import numbers
import re
from typing import Any

import numpy as np


class InputError(ValueError):
  """Bad data, flags or files; the message names the place, the count and the remedy.

  Commands print the message alone and exit with 2.
  """


class RunError(RuntimeError):
  """A run that cannot continue: it diverged or cannot save. The message names the remedy.

  Commands print the message alone and exit with 1.
  """


def rows_sentence(
  subject: str, rule: str, count: int, total: int, first: str, remedy: str, unit: str = "row"
) -> str:
  """The one sentence about rows that break a rule.

  Args:
    subject: a file or table and its column, such as "log.csv: column 'reward'".
    rule: what the column must do, such as "must be finite".
    count: number of rows that break the rule.
    total: number of rows.
    first: the first such row, such as "row 5, value 'nan'".
    remedy: what to do.
    unit: what is counted.
  """
  return f"{subject} {rule}; {count} of {total} {unit}s break this (first: {first}); {remedy}"


def require(
  valid: Any,
  subject: str,
  rule: str,
  remedy: str,
  values: Any = None,
  *,
  unit: str = "row",
  numbers: Any = None,
) -> None:
  """Raises InputError unless all rows are valid; the message gives their number and the first.

  Args:
    valid: [n] bool.
    subject, rule, remedy, unit: see `rows_sentence`.
    values: [n], shown for the first invalid row.
    numbers: [n] the number of each row in its file; by default 0, 1, ...
  """
  bad = np.flatnonzero(~np.asarray(valid, bool))
  if not bad.size:
    return
  i = int(bad[0])
  first = f"{unit} {i if numbers is None else numbers[i]}"
  if values is not None:
    first += f", value {str(values[i])[:80]!r}"
  raise InputError(rows_sentence(subject, rule, bad.size, len(valid), first, remedy, unit))


def reason(error: Exception) -> str:
  """What went wrong, in one line."""
  text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
  # TensorFlow puts "{{function_node ...}}" before and "[Op:...]" behind what happened.
  text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", text).strip()
  return text.splitlines()[0] if text else type(error).__name__


def checked_type(name: str, value: Any, kind: type) -> Any:
  """The value of a setting in its type: bool, int, float or str.

  Raises:
    InputError: the value has another type.
  """
  accepted = {bool: bool, int: numbers.Integral, float: numbers.Real}.get(kind, object)
  if not isinstance(value, accepted) or (isinstance(value, bool) and kind in (int, float)):
    raise InputError(f"{name} must be of type {kind.__name__}, got {value!r}")
  return kind(value)
