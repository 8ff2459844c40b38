"""The rows of a log: what a policy showed, with what probability, and the reward.

One row is one item that was shown. `LogRows` are in memory, `StreamedRows` on disk; models train on
the batches of either. docs/bandit_log.md describes logs in files.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tf_twostage.data import histories
from tf_twostage.data.catalogues import Catalogues, check_same
from tf_twostage.data.files.columns import rule
from tf_twostage.data.histories import Histories
from tf_twostage.errors import InputError, require

if TYPE_CHECKING:
  import tensorflow as tf

_FIELDS = ("user_index", "action", "propensity", "reward", "position", "catalogue")


@dataclasses.dataclass(frozen=True)
class Slices:
  """The part of every batch that one reader takes, such as one worker of several.

  A batch of B rows consists of `of` equal slices; the reader takes slices `begin` to `end - 1`.

  Raises:
    InputError: there are no such slices.
  """

  begin: int
  end: int
  of: int

  def __post_init__(self):
    if not 0 <= self.begin < self.end <= self.of:
      raise InputError(f"slices {self.begin} to {self.end} of {self.of} do not exist")

  def rows(self, batch_size: int) -> int:
    """Rows of a slice, B / of; InputError unless slices are equal."""
    if batch_size < 1 or batch_size % self.of:
      raise InputError(
        f"batch_size must be >= 1 and a multiple of {self.of}, so that the workers that share a"
        f" batch get equal parts; got {batch_size}"
      )
    return batch_size // self.of


WHOLE = Slices(0, 1, 1)


class Rewards(NamedTuple):
  """The sum of the rewards of a log, and the largest reward."""

  total: float
  largest: float

  @property
  def scale(self) -> float:
    """What rewards are divided by to be labels in [0, 1]; 1 unless some are larger."""
    return max(1.0, self.largest)


@dataclasses.dataclass(frozen=True, eq=False)
class LogRows:
  """Logged actions with their propensities and rewards; n rows.

  Attributes:
    user_index: [n] int32, row of the user in the users' table.
    action: [n] int32, catalogue index of the item shown.
    propensity: [n] float32 in (0, 1], probability the behavior policy gave the action; None if it
      was not logged and is not estimated yet.
    reward: [n] float32, >= 0.
    context: raw context features by name, each [n] float64.
    position: [n] int32, 0-based draw or slot; None if it was not logged.
    catalogue: [n] int32, number in `catalogues` of the items that could be shown; None: all could.
    catalogues: sets of items.
    histories: what users did before the rows, n each, by the name of the sequence feature.

  Raises:
    InputError: a column has the wrong type, shape or length, or holds a value out of range.
  """

  user_index: np.ndarray
  action: np.ndarray
  propensity: np.ndarray | None
  reward: np.ndarray
  context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  position: np.ndarray | None = None
  catalogue: np.ndarray | None = None
  catalogues: Catalogues | None = None
  histories: Mapping[str, Histories] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    columns = {name: _cast(name, value) for name, value in self.columns().items()}
    context = {name: _cast(name, value) for name, value in self.context.items()}
    shapes = {name: value.shape for name, value in (columns | context).items()}
    shapes |= {name: (len(history),) for name, history in self.histories.items()}
    if set(shapes.values()) != {(columns["action"].size,)}:
      raise InputError(f"bandit log: columns must be vectors of one length, got {shapes}")
    for name, value in (columns | context).items():
      _check(name, value)
    fields: dict[str, Any] = {**columns, "context": context}
    for field, held in fields.items():
      object.__setattr__(self, field, held)

  def columns(self) -> dict[str, np.ndarray]:
    """The columns that are present by name, [n] each, without the context."""
    return {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None}

  def __len__(self) -> int:
    return len(self.action)

  def select(self, rows: np.ndarray | slice) -> LogRows:
    """The rows of a boolean mask [n], of indices, or of a slice."""
    columns: dict[str, Any] = {name: value[rows] for name, value in self.columns().items()}
    context = {name: value[rows] for name, value in self.context.items()}
    chosen = {name: history.select(rows) for name, history in self.histories.items()}
    return dataclasses.replace(self, **columns, context=context, histories=chosen)

  def available(self, rows: np.ndarray) -> tf.Tensor | None:
    """The items that rows [m] could show, [m, N] bool; None: the whole catalogue."""
    if self.catalogue is None or self.catalogues is None:
      return None
    return self.catalogues.available(self.catalogue[rows])

  def choices(self, num_items: int) -> np.ndarray:
    """How many items each row could show of a catalogue, [n]."""
    if self.catalogue is None or self.catalogues is None:
      return np.full(len(self), num_items)
    return self.catalogues.sizes()[self.catalogue]

  def positives(self) -> LogRows:
    """The rows with reward > 0."""
    return self.select(self.reward > 0)

  def rewards(self) -> Rewards:
    """The sum and the largest of all rewards."""
    return Rewards(float(self.reward.sum()), float(self.reward.max()))

  def shown(self, num_items: int) -> np.ndarray:
    """How many rows show each item of a catalogue, [N] int."""
    return np.bincount(self.action, minlength=num_items)

  def earned(self, num_items: int) -> np.ndarray:
    """The sum of the rewards of each item of a catalogue, [N]."""
    return np.bincount(self.action, weights=self.reward, minlength=num_items)

  def past(self, rows: Any) -> dict[str, tf.Tensor]:
    """Codes of sequence features in rows [m], [m, L] each."""
    parts = [history.coded(name, rows) for name, history in self.histories.items()]
    return {name: values for part in parts for name, values in part.items()}

  def reading(self) -> AbstractContextManager[None]:
    """Does nothing: rows in memory can always be read."""
    return contextlib.nullcontext()

  def batches(
    self,
    user_features: Mapping[str, tf.Tensor | np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    slices: Slices = WHOLE,
  ) -> tf.data.Dataset:
    """Endless batches of the log; a batch is a pure function of the seed and its step.

    Row p of the stream belongs to pass p // n over the log. A pass has every row once, in an order
    of its own. Passes join without a gap: a batch may have the end of one and the start of the
    next, and a batch larger than the log has several. A run resumed at `start_step` sees the
    batches of an uninterrupted run.

    Args:
      user_features: encoded features of all users by name, each [U, ...].
      batch_size: rows in a batch, B.
      seed: fixes the order of every pass.
      start_step: number of batches already taken.
      slices: the part of each batch to yield; by default all of it.

    Returns:
      A dataset of dicts, one for each slice of b = B / slices.of rows: "user" {name: [b, ...]},
      "context" {name: [b] float64}, "user_index" and "action" [b] int32, "propensity" (where the
      log has it) and "reward" [b] float32, "available" [b, N] bool (unless all items always are).
      All shapes are static.

    Raises:
      InputError: the log is empty, `user_features` lacks users of the log, a number is too small,
        or the slices do not divide a batch.
    """
    import tensorflow as tf  # takes seconds, which reading a CSV can do without

    n = len(self)
    last_user = int(self.user_index.max(initial=-1))
    users = checked_users(user_features, rows=n, last_user=last_user, start_step=start_step)
    columns: dict[str, Any] = {**self.columns(), "context": dict(self.context)}
    columns.pop("position", None)
    columns = tf.nest.map_structure(tf.convert_to_tensor, columns)

    def example(rows):
      batch = with_users(tf.nest.map_structure(lambda c: tf.gather(c, rows), columns), users)
      batch["user"] |= self.past(rows)
      if self.catalogues is not None:
        batch["available"] = self.catalogues.available(batch.pop("catalogue"))
      return batch

    rows = shuffled_rows(n, batch_size, seed=seed, start_step=start_step, slices=slices)
    return rows.map(example, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def joined(logs: Sequence[LogRows]) -> LogRows:
  """The rows of all, in order, with the columns that all have."""
  columns = [log.columns() for log in logs]
  for log in logs:
    check_same(log.catalogues, logs[0].catalogues)
  fields: dict[str, Any] = {
    n: np.concatenate([c[n] for c in columns]) for n in _FIELDS if all(n in c for c in columns)
  }
  return LogRows(
    **{"propensity": None, **fields},
    context={n: np.concatenate([log.context[n] for log in logs]) for n in logs[0].context},
    catalogues=logs[0].catalogues,
    histories={n: histories.joined([log.histories[n] for log in logs]) for n in logs[0].histories},
  )


def checked_users(
  user_features: Mapping[str, tf.Tensor | np.ndarray],
  *,
  rows: int,
  last_user: int,
  start_step: int,
) -> dict[str, tf.Tensor]:
  """The tables of users as tensors, [U, ...] each, after checking that batches can be made."""
  import tensorflow as tf

  if not rows:
    raise InputError("bandit log: no rows to train on; were there any with reward > 0?")
  if start_step < 0:
    raise InputError(f"start_step must be >= 0, got {start_step}")
  users = {name: tf.convert_to_tensor(table) for name, table in user_features.items()}
  short = {name: len(table) for name, table in users.items() if len(table) <= last_user}
  if short:
    raise InputError(
      f"user features: tables of {short} rows end before user {last_user} of the log; encode every"
      " user of the schema"
    )
  return users


def with_users(batch: dict[str, Any], users: Mapping[str, tf.Tensor]) -> dict[str, Any]:
  """Adds the features of the batch's users as "user"."""
  import tensorflow as tf

  index = batch["user_index"]
  return {**batch, "user": {name: tf.gather(table, index) for name, table in users.items()}}


def shuffled_rows(
  num_rows: int, batch_size: int, *, seed: int, start_step: int = 0, slices: Slices = WHOLE
) -> tf.data.Dataset:
  """Endless batches of row numbers, int64, in the order of `LogRows.batches`."""
  import tensorflow as tf

  size = slices.rows(batch_size)
  begin, end, _ = dataclasses.astuple(slices)

  def batch(count):
    step, taken = count // (end - begin), begin + count % (end - begin)
    place = step * batch_size + taken * size + tf.range(size, dtype=tf.int64)
    epoch = place // num_rows
    key = tf.stack([tf.fill(epoch.shape, tf.constant(seed, tf.int64)), epoch, epoch], axis=1)
    return shuffled(place % num_rows, key, num_rows)

  options = tf.data.Options()
  options.deterministic = True
  return tf.data.Dataset.counter(start_step * (end - begin)).map(batch).with_options(options)


def shuffled(index: tf.Tensor, key: tf.Tensor, n: int | tf.Tensor) -> tf.Tensor:
  """Places of indices, [B] int64, in the permutation of n that each key, [B, 3] int64, fixes."""
  import tensorflow as tf

  # The raw op, because tf.random.experimental.index_shuffle takes no seed per row and its four
  # rounds leave the orders of successive passes alike: their correlation is 0.4 at 30,000 rows
  # and 0.95 at a million.
  return tf.raw_ops.RandomIndexShuffle(
    index=index, seed=key, max_index=tf.cast(n - 1, tf.int64), rounds=16
  )


def _cast(name: str, values: Any) -> np.ndarray:
  values, dtype = np.asarray(values), rule(name).dtype
  try:
    with np.errstate(over="ignore", under="ignore"):
      return values.astype(dtype, casting="same_kind")
  except TypeError:
    raise InputError(
      f"bandit log: column {name!r} must be {dtype}, got {values.dtype}; convert it first"
    ) from None


def _check(name: str, values: np.ndarray) -> None:
  wanted = rule(name)
  subject = f"bandit log: column {name!r}"
  require(wanted.valid(values), subject, wanted.text, wanted.remedy, values)
