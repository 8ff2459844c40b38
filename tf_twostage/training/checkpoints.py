"""Checkpoints that are complete or not there, and what to do about one that cannot be read."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import tempfile
from typing import Any

import tensorflow as tf

from tf_twostage.errors import RunError, reason

_log = logging.getLogger(__name__)

_WEIGHTS = "weights"

# What TensorFlow's reader makes of truncated files and of errors that it has no class for.
_UNREADABLE = (OSError, ValueError, IndexError, RuntimeError)


class Checkpoints:
  """The latest checkpoints of a run, `ckpt-<number>` each, with a JSON record beside them.

  tf.train.CheckpointManager writes in place: where the disk is full, or the process is killed, a
  part of a checkpoint may stay. Here one is written aside and renamed, its index last, without
  which it does not count.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int, writes: bool = True, **state: Any):
    """Args:
    directory: where they are; made when the first is saved.
    keep: how many stay.
    writes: whether `save` leaves anything. Workers that share variables save together, but one
      of them writes.
    state: what to save, as tf.train.Checkpoint takes it.
    """
    self._directory = directory
    self._keep = keep
    self._writes = writes
    self._checkpoint = tf.train.Checkpoint(**state)

  def numbers(self) -> list[int]:
    """Of the checkpoints that are there, ascending."""
    return sorted(
      int(index.stem.removeprefix("ckpt-")) for index in self._directory.glob("ckpt-*.index")
    )

  def save(self, number: int, record: Any = None) -> None:
    """Saves the state as it is; drops older checkpoints, and any of a later number.

    Args:
      number: larger than those that shall stay; later ones are left from a course that could not
        be gone on with.
      record: JSON-able.

    Raises:
      OSError, tf.errors.OpError: the checkpoint could not be written; earlier ones are as before.
    """
    if not self._writes:
      with tempfile.TemporaryDirectory() as elsewhere:
        self._checkpoint.write(str(pathlib.Path(elsewhere) / "ckpt"))
      return
    aside = self._directory / ".partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
      self._checkpoint.write(str(aside / f"ckpt-{number}"))
      (aside / f"ckpt-{number}.json").write_text(json.dumps(record), encoding="utf-8")
      self._remove(number)
      for file in sorted(aside.iterdir(), key=lambda file: file.suffix == ".index"):
        os.replace(file, self._directory / file.name)
    finally:
      shutil.rmtree(aside, ignore_errors=True)
    kept = [n for n in self.numbers() if n <= number][-self._keep :]
    for other in set(self.numbers()) - set(kept):
      self._remove(other)

  def restore(self) -> tuple[int, Any] | None:
    """Restores the newest that can be read; its number and record, or None if there is none."""
    numbers = self.numbers()[::-1]
    for i, number in enumerate(numbers):
      try:
        return number, self._read(number)
      except (*_UNREADABLE, tf.errors.OpError) as error:
        what_now = "trying the one before" if numbers[i + 1 :] else "none is left, starting anew"
        _log.warning("%s cannot be read (%s); %s", self._prefix(number), reason(error), what_now)
    return None

  def _read(self, number: int) -> Any:
    prefix = str(self._prefix(number))
    record = json.loads(pathlib.Path(f"{prefix}.json").read_text(encoding="utf-8"))
    # All checksums first, so that a damaged checkpoint leaves the state as it is.
    reader = tf.train.load_checkpoint(prefix)
    for name in reader.get_variable_to_shape_map():
      reader.get_tensor(name)
    self._checkpoint.read(prefix).expect_partial()
    return record

  def _prefix(self, number: int) -> pathlib.Path:
    return self._directory / f"ckpt-{number}"

  def _remove(self, number: int) -> None:
    files = self._directory.glob(f"ckpt-{number}.*")
    for file in sorted(files, key=lambda file: file.suffix != ".index"):
      file.unlink()


def save_weights(model: tf.Module, directory: pathlib.Path) -> None:
  """Saves the variables of a model.

  Raises:
    RunError: the directory cannot be written.
  """
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
