"""Which rows of a log train, which validate, which test; and whether one leaks into another.

Knows arrays only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, require

NAMES = ("train", "validation", "test")
# What people write in a column that names a split.
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
  """Masks over the n rows of a log; a row is in one of them at most.

  Attributes:
    train: [n] bool, as the others.
    validation: chooses epochs and settings; may be empty.
    test: what is reported.
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


def by_time(time: np.ndarray, *, validation: float = 0.1, test: float = 0.1) -> Splits:
  """The latest rows test, those before them validate.

  Rows of one moment stay together, so shares are met as nearly as the times allow.

  Args:
    time: [n] finite numbers.
    validation: share of the rows that validates.
    test: share of the rows that tests.

  Raises:
    InputError: shares are out of range, or leave no row to train on.
  """
  train_share = 1 - _checked(validation, test)
  ordered = np.sort(time)
  test_from = _cut(ordered, 1 - test)
  validation_from = min(_cut(ordered, train_share), test_from)
  return Splits(
    train=time < validation_from,
    validation=(time >= validation_from) & (time < test_from),
    test=time >= test_from,
  )


def by_user(
  user_index: np.ndarray, *, validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> Splits:
  """Every row of a user goes the same way; shares are of users.

  Args:
    user_index: [n] int >= 0.
    validation: share of the users that validate.
    test: share of the users that test.
    seed: fixes who is drawn.
  """
  users, row_user = np.unique(user_index, return_inverse=True)
  drawn = at_random(len(users), validation=validation, test=test, seed=seed)
  return Splits(**{name: mask[row_user] for name, mask in drawn.masks().items()})


def at_random(rows: int, *, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Splits:
  """Rows drawn without replacement.

  Args:
    rows: number of rows, n.
    validation: share of the rows that validates.
    test: share of the rows that tests.
    seed: fixes the draw.
  """
  _checked(validation, test)
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


def by_column(labels: np.ndarray) -> Splits:
  """Rows say where they belong.

  Args:
    labels: [n] str: train, validation (or valid, val, dev) or test, in any case.

  Raises:
    InputError: a label is none of these.
  """
  return by_code(codes(labels))


def by_code(code: np.ndarray) -> Splits:
  """Rows say where they belong, by places in `NAMES`: [n] int."""
  return Splits(**{name: code == place for place, name in enumerate(NAMES)})


def codes(labels: np.ndarray) -> np.ndarray:
  """Places of labels in `NAMES`, [n] int8.

  Args:
    labels: [n] str: train, validation (or valid, val, dev) or test, in any case.

  Raises:
    InputError: a label is none of these.
  """
  values, row_value = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
  named = np.array([_SYNONYMS.get(value.strip().lower(), "") for value in values])
  known, rule = named[row_value] != "", f"must be {', '.join(NAMES)}"
  require(known, "splits: the split column", rule, "mend these labels", values[row_value])
  return np.array([NAMES.index(name) for name in named], np.int8)[row_value]


METHODS: dict[str, str] = {
  "column": "as the log's split column says",
  "time": "the latest rows validate and test",
  "user": "users drawn at random, with all their rows",
  "random": "rows drawn at random",
}


def method(name: str, *, time: np.ndarray | None, labels: np.ndarray | None) -> str:
  """A key of `METHODS`; for "auto" the first of column, time and random that the log allows.

  Raises:
    InputError: there is no such method, or the log lacks what it needs.
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


def split(
  method_name: str,
  *,
  user_index: np.ndarray,
  time: np.ndarray | None = None,
  labels: np.ndarray | None = None,
  validation: float = 0.1,
  test: float = 0.1,
  seed: int = 0,
) -> Splits:
  """Splits a log by the method of that name.

  Args:
    method_name: see `method`.
    user_index: [n] int.
    time: [n] float, or None where not logged.
    labels: [n] str, or None where the log names no split.
    validation: share that validates; not for "column".
    test: share that tests; not for "column".
    seed: of what is drawn.

  Raises:
    InputError: there is no such method, or the log lacks what it needs.
  """
  shares = {"validation": validation, "test": test}
  makers: dict[str, Callable[[], Splits]] = {
    "column": lambda: by_column(labels),  # type: ignore[arg-type]
    "time": lambda: by_time(time, **shares),  # type: ignore[arg-type]
    "user": lambda: by_user(user_index, **shares, seed=seed),
    "random": lambda: at_random(len(user_index), **shares, seed=seed),
  }
  return makers[method(method_name, time=time, labels=labels)]()


@dataclasses.dataclass(frozen=True)
class Leaks:
  """What training rows know that they should not. None: cannot be told without times.

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
  splits: Splits, *, user_index: np.ndarray, action: np.ndarray, time: np.ndarray | None
) -> Leaks:
  """Looks for the future in the training rows, and for rows that stand in two splits.

  Args:
    splits: over n rows.
    user_index: [n] int.
    action: [n] int.
    time: [n] float, or None where not logged.
  """
  if time is None:
    return Leaks(None, None, None)
  time = np.asarray(time, np.float64)
  evaluation = splits.validation | splits.test
  first = np.min(time, where=evaluation, initial=np.inf)
  later = int((time[splits.train] > first).sum())
  part = np.select(list(splits.masks().values()), range(len(NAMES)), default=-1)
  rows = pd.DataFrame({"user": user_index, "action": action, "time": time, "part": part})
  rows = rows[part >= 0]
  repeated = rows[rows.duplicated(["user", "action", "time"], keep=False)]
  lowest = repeated.groupby(["user", "action", "time"])["part"].transform("min")
  shared = int((repeated["part"] > lowest).sum())
  return Leaks(later, later / int(splits.train.sum()), shared)


def _checked(validation: float, test: float) -> float:
  if validation < 0 or test < 0 or not validation + test < 1:
    raise InputError(
      f"splits: shares must be >= 0 and leave rows to train on, got validation={validation} and"
      f" test={test}"
    )
  return validation + test


def _cut(ordered: np.ndarray, share: float) -> float:
  """The time at which the later rows begin: that of row `share * n`, or none at all."""
  place = round(len(ordered) * share)
  return float(ordered[place]) if place < len(ordered) else np.inf
