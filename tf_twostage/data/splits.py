"""Which rows of a log train, validate and test; and whether one part leaks into another.

Works on arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, checked_type, require

NAMES = ("train", "validation", "test")
METHODS = ("column", "time", "user", "random")
# Words that people write in a split column.
_SYNONYMS = {
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
}


def split(
  method_name: str,
  *,
  user_index: np.ndarray,
  time: np.ndarray | None = None,
  labels: np.ndarray | None = None,
  slate: np.ndarray | None = None,
  validation: float = 0.15,
  test: float = 0.15,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Masks of the training, validation and test rows by name, [n] bool; each row is in one.

  Columns of the log are [n] or None where not logged. Shares are of users if `method` is "user".
  Slates stay whole: they are drawn at random, and have the time of their first row.

  Raises:
    InputError: the log lacks what the method needs, or a part is empty whose share is not 0.
  """
  name = method(method_name, time=time, labels=labels, slate=slate)
  validation = checked_type("validation", validation, float)
  test = checked_type("test", test, float)
  if validation < 0 or test < 0 or not validation + test < 1:
    raise InputError(
      "splits: shares must be >= 0 and leave rows to train on, got"
      f" validation={validation} and test={test}"
    )
  unit, units = "row", len(user_index)  # what stays whole, and how many there are
  if name == "column" and labels is not None:
    part = codes(labels)
  elif name == "time" and time is not None:
    moment = slate_time(time, slate)
    part = _latest(moment, validation, test)
    unit, units = "different time", len(np.unique(moment))
  else:
    row_unit = np.arange(units)
    if name == "user":
      unit, row_unit = "user", np.unique(user_index, return_inverse=True)[1]
    elif slate is not None:
      unit, row_unit = "slate", np.unique(slate, return_inverse=True)[1]
    units = int(row_unit.max()) + 1
    part = _drawn(units, validation, test, seed)[row_unit]
  masks = {name: part == place for place, name in enumerate(NAMES)}
  shares = {"train": 1.0, "validation": validation, "test": test}
  wanted = [part for part, share in shares.items() if share > 0]
  if empty := [part for part in wanted if not masks[part].any()]:
    if name == "column":
      remedy = "label rows for it, or split otherwise"
    elif units < len(wanted):
      remedy = f"log more: there {'is' if units == 1 else 'are'} {units} {unit}{'s'[: units > 1]}"
    else:
      remedy = "change the shares of validation and test, or split otherwise"
    how = "at random" if name == "random" else f"by {name}"
    have = "has" if len(empty) == 1 else "have"
    raise InputError(f"split {how}: {' and '.join(empty)} {have} no rows, of {len(part)}; {remedy}")
  return masks


def slate_time(time: np.ndarray, slate: np.ndarray | None) -> np.ndarray:
  """The time of the first row of each row's slate, [n]; without slates each row's own."""
  if slate is None:
    return time
  first = np.full(int(slate.max()) + 1, np.inf)
  np.minimum.at(first, slate, time)
  return first[slate]


def method(
  name: str,
  *,
  time: np.ndarray | None,
  labels: np.ndarray | None,
  slate: np.ndarray | None = None,
) -> str:
  """One of `METHODS`; for "auto" the first of column, time and random that the log allows."""
  first = None if time is None else slate_time(time, slate)
  one_time = first is not None and first.size > 0 and first.min() == first.max()
  if name == "auto":
    if labels is not None:
      return "column"
    return "random" if time is None or one_time else "time"
  if name not in METHODS:
    raise InputError(f"unknown split {name!r}; choose one of auto, {', '.join(METHODS)}")
  if (name == "column" and labels is None) or (name == "time" and time is None):
    raise InputError(
      f"split by {name}: the log has none; name its column, as"
      f" `{'split' if name == 'column' else 'time'}`, in the schema or in from_pandas, or split by"
      " user or at random"
    )
  if name == "time" and one_time:
    rows = "rows" if slate is None else "slates"
    raise InputError(f"split by time: all {rows} have one time; split by user or at random")
  return name


def _latest(time: np.ndarray, validation: float, test: float) -> np.ndarray:
  """Places in `NAMES`, [n], by time; rows of one moment stay together."""
  ordered = np.sort(time)

  def moment(share: float) -> float:
    place = round(len(time) * share)
    return float(ordered[place]) if place < len(time) else np.inf

  test_from = moment(1 - test)
  validation_from = min(moment(1 - (validation + test)), test_from)
  return (time >= validation_from).astype(np.int8) + (time >= test_from)


def _drawn(rows: int, validation: float, test: float, seed: int) -> np.ndarray:
  """Places in `NAMES`, [rows], drawn without replacement."""
  place = np.random.default_rng(seed).permutation(rows)
  num_test = round(rows * test)
  held_out = num_test + round(rows * validation)
  return (place < held_out).astype(np.int8) + (place < num_test)


def is_label(labels: pd.Series | np.ndarray) -> np.ndarray:
  """Which of the labels name a split, [n] bool."""
  return pd.Series(labels, dtype=object).str.strip().str.lower().isin(_SYNONYMS.keys()).to_numpy()


def codes(labels: np.ndarray) -> np.ndarray:
  """Places in `NAMES`, [n] int8, of labels in any case, or of codes."""
  if labels.dtype == np.int8:
    return labels
  values, row_value = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
  named = np.array([_SYNONYMS.get(value.strip().lower(), "") for value in values])
  require(
    (named != "")[row_value],
    "splits: the split column",
    f"must be {', '.join(NAMES)}",
    "write one of these",
    labels,
  )
  return np.array([NAMES.index(name) for name in named], np.int8)[row_value]


def find_leaks(
  masks: Mapping[str, np.ndarray], user_index: np.ndarray, action: np.ndarray, time: np.ndarray
) -> tuple[int, int]:
  """Knowledge of evaluated rows in the training rows; all arrays are [n].

  Returns the number of training rows later than the first row that is evaluated; and of evaluated
  rows with the user, item and time of a training row, or of a row in the other part.
  """
  time = np.asarray(time, np.float64)
  first = np.min(time, where=masks["validation"] | masks["test"], initial=np.inf)
  later = int((time[masks["train"]] > first).sum())
  part = np.select(list(masks.values()), range(len(masks)), default=-1)
  rows = pd.DataFrame({"user": user_index, "action": action, "time": time, "part": part})
  rows = rows[part >= 0]
  rows = rows[rows.duplicated(["user", "action", "time"], keep=False)]
  lowest = rows.groupby(["user", "action", "time"])["part"].transform("min")
  return later, int((rows["part"] > lowest).sum())
