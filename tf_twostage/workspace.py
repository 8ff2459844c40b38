"""Directories that remember what they were made from, so that unchanged work is reused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tf_twostage.errors import RunError, reason

_log = logging.getLogger(__name__)

_RECORD = "stage.json"
_WEIGHTS = "weights"
_LATEST = 60.0  # seconds; network file systems remember for so long that a file was not there


def fingerprint(inputs: Mapping[str, Any]) -> str:
  """A short digest of JSON-able inputs."""
  text = json.dumps(inputs, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:10]


class Stages:
  """Builds named stages under `root/<name>-<fingerprint>/`, or finds them built.

  A stage is written aside and renamed when it is complete, so that a directory that exists is a
  directory that can be used.
  """

  def __init__(
    self, root: pathlib.Path, *, builds: bool = True, ready: Callable[[], None] = lambda: None
  ):
    """Args:
    root: holds the stages; workers share it.
    builds: whether this worker builds what is missing; others find it when it is there.
    ready: called at each stage: one worker comes when it has built it, and the others wait for
      that here.
    """
    self._root = root
    self._builds = builds
    self._ready = ready
    self.timings: dict[str, dict[str, Any]] = {}

  def get(
    self, name: str, inputs: Mapping[str, Any], build: Callable[[pathlib.Path], None]
  ) -> pathlib.Path:
    """The stage's directory; `build(directory)` fills it if no stage has these inputs.

    Args:
      name: what the stage makes, such as "ranker".
      inputs: JSON-able; all that the result depends on, earlier stages' names included.
      build: writes the results into an empty directory.
    """
    path = self._root / f"{name}-{fingerprint(inputs)}"
    reused = (path / _RECORD).exists()
    if not self._builds:
      self._ready()
      _appear(path / _RECORD)
      reused = True
    elif not reused:
      partial = path.with_name(f".{path.name}.partial")
      shutil.rmtree(partial, ignore_errors=True)
      partial.mkdir(parents=True)
      start = time.perf_counter()
      build(partial)
      record = {"seconds": round(time.perf_counter() - start, 2), "inputs": inputs}
      write_json(partial / _RECORD, record)
      partial.rename(path)
    if self._builds:
      self._ready()
    seconds = json.loads((path / _RECORD).read_text())["seconds"]
    self.timings[name] = {"seconds": seconds, "reused": reused}
    _log.info("%s: %s", name, f"reused {path}" if reused else f"done in {seconds:.1f} s")
    return path

  @contextlib.contextmanager
  def timed(self, name: str) -> Iterator[None]:
    """Times work that is no stage of its own."""
    start = time.perf_counter()
    yield
    self.timings[name] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}


def _appear(file: pathlib.Path) -> None:
  """Waits for a file that another machine has written, which some file systems show late."""
  deadline = time.monotonic() + _LATEST
  while not file.exists():
    if time.monotonic() > deadline:
      raise RunError(
        f"{file} was written by the chief and is not here after {_LATEST:.0f} s: give all workers"
        " the same --workdir, on a file system that they share"
      )
    time.sleep(0.1)


def write_json(path: pathlib.Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one step: readers see the old text or the new, never a part."""
  aside = path.with_name(f".{path.name}.partial")
  aside.write_text(text, encoding="utf-8")
  os.replace(aside, path)


def save_weights(model: tf.Module, directory: pathlib.Path) -> None:
  try:
    tf.train.Checkpoint(model).write(str(directory / _WEIGHTS))
  except tf.errors.OpError as error:
    raise RunError(
      f"cannot save to {directory}: {reason(error)}. What was finished before stays; once there is"
      " room and leave to write, the same command goes on from it"
    ) from error


def restore_weights(model: tf.Module, directory: pathlib.Path) -> None:
  """Loads what `save_weights` wrote into a model of the same build."""
  status = tf.train.Checkpoint(model).read(str(directory / _WEIGHTS))
  status.assert_existing_objects_matched().expect_partial()  # the optimizer stays behind
