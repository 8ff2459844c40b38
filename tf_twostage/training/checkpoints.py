"""Checkpoints that are complete or absent, and what happens to a damaged one."""

from __future__ import annotations

import logging
import pathlib
import tempfile
from typing import Any

import tensorflow as tf

from tf_twostage.errors import RunError, reason
from tf_twostage.workspace import (
  Damaged,
  atomic_directory,
  is_intact,
  remove_directory,
  seal,
  set_aside,
  unseal,
  with_nan,
)

_log = logging.getLogger(__name__)

_STATE, _RECORD, _RECORDED, _WEIGHTS = "state", "record.json", "record", "weights"


class Checkpoints:
  """The latest checkpoints of a run: sealed directories `ckpt-<number>`, each with a JSON record.

  `tf.train.CheckpointManager` writes in place, so a full disk or a killed process leaves parts of a
  checkpoint. It also neither flushes to the disk, nor verifies checksums before it restores, nor
  falls back to an older checkpoint.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int, writes: bool = True, **state: Any):
    """Keeps the newest `keep` checkpoints of `state`, as for `tf.train.Checkpoint`.

    All workers that share variables must call `save`, but only one may write: the others pass
    `writes=False`.
    """
    self._directory = directory
    self._keep = keep
    self._writes = writes
    self._checkpoint = tf.train.Checkpoint(**state)

  def numbers(self) -> list[int]:
    """Returns the numbers of the existing checkpoints, ascending."""
    names = (path.name.removeprefix("ckpt-") for path in self._directory.glob("ckpt-*"))
    return sorted(int(name) for name in names if name.isdigit())

  def save(self, number: int, record: Any = None) -> None:
    """Saves the state with a JSON-able record; deletes checkpoints beyond `keep`.

    `number` is the step; later checkpoints, left by an abandoned run, are deleted. If it raises,
    earlier checkpoints are unchanged.
    """
    if not self._writes:
      with tempfile.TemporaryDirectory() as directory:
        self._checkpoint.write(f"{directory}/{_STATE}")
      return
    with atomic_directory(self._path(number)) as directory:
      self._checkpoint.write(str(directory / _STATE))
      seal(directory, _RECORD, {_RECORDED: record})
    kept = [n for n in self.numbers() if n <= number][-self._keep :]
    for other in set(self.numbers()) - set(kept):
      remove_directory(self._path(other))

  def newest(self) -> tuple[int, Any] | None:
    """The number and record of the newest intact checkpoint; damaged ones are set aside."""
    numbers = self.numbers()[::-1]
    for i, number in enumerate(numbers):
      try:
        return number, with_nan(unseal(self._path(number), _RECORD)[_RECORDED])
      except Damaged as error:
        next_step = "trying the one before" if numbers[i + 1 :] else "none is left, starting anew"
        _log.warning("%s; %s", error, next_step)
        if self._writes:
          set_aside(self._path(number))
    return None

  def has(self, number: int) -> bool:
    """Whether there is such a checkpoint, intact; a damaged one is set aside."""
    found = is_intact(self._path(number), _RECORD, warn=True)
    if not found and self._writes:
      set_aside(self._path(number))
    return found

  def load(self, number: int) -> None:
    """Restores an intact checkpoint, which must hold all of the state."""
    status = self._checkpoint.read(str(self._path(number) / _STATE))
    status.assert_existing_objects_matched().expect_partial()

  def _path(self, number: int) -> pathlib.Path:
    return self._directory / f"ckpt-{number}"


def save_weights(model: tf.Module, directory: pathlib.Path) -> None:
  """Saves the variables of a model; RunError if the directory cannot be written."""
  try:
    tf.train.Checkpoint(model).write(str(directory / _WEIGHTS))
  except tf.errors.OpError as error:
    raise RunError(
      f"cannot save to {directory}: {reason(error)}. Finished stages are kept: free some space, or"
      " make the directory writable, and run the same command again"
    ) from error


def restore_weights(model: tf.Module, directory: pathlib.Path) -> None:
  """Loads the output of `save_weights` into a model of the same build."""
  status = tf.train.Checkpoint(model).read(str(directory / _WEIGHTS))
  status.assert_existing_objects_matched().expect_partial()  # without the optimizer
