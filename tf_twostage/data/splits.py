"""Which rows of a log train, validate and test; and whether one part leaks into another.

Works on arrays only.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, require

NAMES = ("train", "validation", "test")
METHODS: dict[str, str] = {
  "column": "as the log's split column says",
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


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
  """Masks over the n rows of a log, [n] bool each; a row is in at most one of them.

  Raises:
    InputError: masks overlap, differ in shape, or leave no row to train on.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray

  def __post_init__(self):
    shapes = {mask.shape for mask in self.masks().values()}
    if len(shapes) > 1 or np.sum(list(self.masks().values()), axis=0).max(initial=0) > 1:
      raise InputError(f"splits: masks must be disjoint and of one shape, got shapes {shapes}")
    if not self.train.any():
      raise InputError(
        f"splits: no row is left to train on, of {self.train.size}; make validation and test"
        " smaller"
      )

  def masks(self) -> dict[str, np.ndarray]:
    return {name: getattr(self, name) for name in NAMES}

  def sizes(self) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in self.masks().items()}


def split(
  method_name: str,
  *,
  user_index: np.ndarray,
  time: np.ndarray | None = None,
  labels: np.ndarray | None = None,
  validation: float = 0.15,
  test: float = 0.15,
  seed: int = 0,
) -> Splits:
  """Splits a log by the method of that name.

  Args:
    method_name: see `method`.
    user_index: [n] int.
    time: [n] float, or None where not logged.
    labels: as `codes`, or None where the log has no split column.
    validation: share that validates; not for "column".
    test: share that tests; not for "column".
    seed: fixes random draws.

  Raises:
    InputError: there is no such method, the log lacks the column for it, or shares are out of range
      or leave no row to train on.
  """
  name = method(method_name, time=time, labels=labels)
  if name == "column" and labels is not None:
    code = codes(labels)
    return Splits(*(code == place for place in range(len(NAMES))))
  if name == "time" and time is not None:
    return by_time(time, validation=validation, test=test)
  if name == "user":
    return by_user(user_index, validation=validation, test=test, seed=seed)
  return at_random(len(user_index), validation=validation, test=test, seed=seed)


def method(name: str, *, time: np.ndarray | None, labels: np.ndarray | None) -> str:
  """A key of `METHODS`; for "auto" the first of column, time and random that the log allows.

  Raises:
    InputError: there is no such method, or the log lacks the column for it.
  """
  if name == "auto":
    return "column" if labels is not None else "time" if time is not None else "random"
  if name not in METHODS:
    raise InputError(f"unknown split {name!r}; choose one of auto, {', '.join(METHODS)}")
  if (name == "column" and labels is None) or (name == "time" and time is None):
    raise InputError(
      f"split by {name}: the log has none; name its column as"
      f" `{'split' if name == 'column' else 'time'}` in the schema, or split otherwise"
    )
  return name


def by_time(time: np.ndarray, *, validation: float = 0.15, test: float = 0.15) -> Splits:
  """The latest rows test, those before them validate; rows of one moment, [n], stay together."""
  _check(validation, test)
  ordered = np.sort(time)

  def moment(share: float) -> float:
    place = round(len(time) * share)
    return float(ordered[place]) if place < len(time) else np.inf

  test_from = moment(1 - test)
  validation_from = min(moment(1 - (validation + test)), test_from)
  return Splits(
    train=time < validation_from,
    validation=(time >= validation_from) & (time < test_from),
    test=time >= test_from,
  )


def by_user(
  user_index: np.ndarray, *, validation: float = 0.15, test: float = 0.15, seed: int = 0
) -> Splits:
  """All rows of a user, [n] int, are in one part; shares are of users."""
  users, row_user = np.unique(user_index, return_inverse=True)
  drawn = at_random(len(users), validation=validation, test=test, seed=seed)
  return Splits(**{name: mask[row_user] for name, mask in drawn.masks().items()})


def at_random(rows: int, *, validation: float = 0.15, test: float = 0.15, seed: int = 0) -> Splits:
  """Rows drawn without replacement."""
  _check(validation, test)
  place = np.random.default_rng(seed).permutation(rows)
  num_test, num_validation = round(rows * test), round(rows * validation)
  return Splits(
    train=place >= num_test + num_validation,
    validation=(place >= num_test) & (place < num_test + num_validation),
    test=place < num_test,
  )


def is_label(labels: pd.Series | np.ndarray) -> np.ndarray:
  """Which of the labels name a split, [n] bool."""
  return pd.Series(labels, dtype=object).str.strip().str.lower().isin(_SYNONYMS.keys()).to_numpy()


def codes(labels: np.ndarray) -> np.ndarray:
  """Places of labels in `NAMES`, [n] int8.

  Args:
    labels: [n] str: train, validation (or valid, val, dev) or test, in any case; or codes.

  Raises:
    InputError: a label is none of these.
  """
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


@dataclasses.dataclass(frozen=True)
class Leaks:
  """Knowledge of evaluated rows in the training rows; None where it cannot be known without times.

  Attributes:
    later_rows: training rows later than the first row of validation or test.
    later_share: the same as a share of the training rows.
    shared_rows: rows of validation or test with the user, item and time of a training row, or of
      each other.
  """

  later_rows: int | None
  later_share: float | None
  shared_rows: int | None


def find_leaks(
  splits: Splits, user_index: np.ndarray, action: np.ndarray, time: np.ndarray | None
) -> Leaks:
  """Counts training rows from the future, and rows that are in two parts; arrays are [n]."""
  if time is None:
    return Leaks(None, None, None)
  time = np.asarray(time, np.float64)
  first = np.min(time, where=splits.validation | splits.test, initial=np.inf)
  later = int((time[splits.train] > first).sum())
  part = np.select(list(splits.masks().values()), range(len(NAMES)), default=-1)
  rows = pd.DataFrame({"user": user_index, "action": action, "time": time, "part": part})
  rows = rows[part >= 0]
  rows = rows[rows.duplicated(["user", "action", "time"], keep=False)]
  lowest = rows.groupby(["user", "action", "time"])["part"].transform("min")
  shared = int((rows["part"] > lowest).sum())
  return Leaks(later, later / int(splits.train.sum()), shared)


def _check(validation: float, test: float) -> None:
  if validation < 0 or test < 0 or not validation + test < 1:
    raise InputError(
      f"splits: shares must be >= 0 and leave rows to train on, got validation={validation} and"
      f" test={test}"
    )
