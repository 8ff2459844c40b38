"""Which rows of a log train, validate and test; and whether one part leaks into another.

Works on arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, checked_type, require

NAMES = ("train", "validation", "test")
METHODS: dict[str, str] = {
  "column": "by the log's split column",
  "time": "the latest rows validate and test",
  "user": "users drawn at random, with all their rows",
  "random": "rows drawn at random",
}
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
  """
  name = method(method_name, time=time, labels=labels)
  if name == "column" and labels is not None:
    part = codes(labels)
  else:
    validation = checked_type("validation", validation, float)
    test = checked_type("test", test, float)
    if validation < 0 or test < 0 or not validation + test < 1:
      raise InputError(
        "splits: shares must be >= 0 and leave rows to train on, got"
        f" validation={validation} and test={test}"
      )
    if name == "time" and time is not None:
      part = _latest(slate_time(time, slate), validation, test)
    elif name == "user":
      users, row_user = np.unique(user_index, return_inverse=True)
      part = _drawn(len(users), validation, test, seed)[row_user]
    elif slate is not None:
      slates, row_slate = np.unique(slate, return_inverse=True)
      part = _drawn(len(slates), validation, test, seed)[row_slate]
    else:
      part = _drawn(len(user_index), validation, test, seed)
  masks = {name: part == place for place, name in enumerate(NAMES)}
  if not masks["train"].any():
    raise InputError(
      f"split by {name}: no row is left to train on, of {len(part)}; make validation and test"
      " smaller, or split at random"
    )
  return masks


def slate_time(time: np.ndarray, slate: np.ndarray | None) -> np.ndarray:
  """The time of the first row of each row's slate, [n]; without slates each row's own."""
  if slate is None:
    return time
  first = np.full(int(slate.max()) + 1, np.inf)
  np.minimum.at(first, slate, time)
  return first[slate]


def method(name: str, *, time: np.ndarray | None, labels: np.ndarray | None) -> str:
  """A key of `METHODS`; for "auto" the first of column, time and random that the log allows."""
  one_time = time is not None and time.size > 0 and time.min() == time.max()
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
    raise InputError("split by time: all rows have one time; split by user or at random")
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
