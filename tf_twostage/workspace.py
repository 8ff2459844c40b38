"""A work directory: stages that are built once, and writes that are complete or absent."""

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

import numpy as np

import tf_twostage
from tf_twostage.errors import RunError

_log = logging.getLogger(__name__)

_RECORD = "stage.json"
_PARTIAL = "partial"
_VISIBLE_AFTER = 60.0  # seconds; network file systems cache for so long that a file is missing


def fingerprint(inputs: Mapping[str, Any]) -> str:
  """Returns a short digest of JSON-able inputs and the version of this package."""
  versioned = {"version": tf_twostage.__version__, "inputs": inputs}
  text = json.dumps(versioned, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:10]


class Workspace:
  """Cache of named stages, each in a directory `root/<name>-<fingerprint>/`.

  Another version of this package builds its own stages. A stage is written with
  `atomic_directory`, so a directory that exists is complete.

  Attributes:
    timings: seconds of every stage and of all timed work, and whether it was reused.
  """

  def __init__(
    self, root: pathlib.Path, *, builds: bool = True, barrier: Callable[[], None] = lambda: None
  ):
    """Missing stages are built if `builds`; other workers wait for them.

    All workers share `root`. `barrier` blocks until each has called it, once for every stage.
    """
    self._root = root
    self._builds = builds
    self._barrier = barrier
    self.timings: dict[str, dict[str, Any]] = {}

  def stage(
    self, name: str, inputs: Mapping[str, Any], build: Callable[[pathlib.Path], object]
  ) -> pathlib.Path:
    """Returns the directory of a stage; builds it unless it exists.

    Args:
      name: name of the result, such as "ranker".
      inputs: JSON-able values that determine the result, names of earlier stages included.
      build: writes the result into an empty directory.
    """
    path = self._root / f"{name}-{fingerprint(inputs)}"
    reused = not self._builds or (path / _RECORD).exists()
    if not reused:
      with atomic_directory(path) as directory:
        start = time.perf_counter()
        build(directory)
        seconds = round(time.perf_counter() - start, 2)
        record = {"seconds": seconds, "version": tf_twostage.__version__, "inputs": inputs}
        write_json(directory / _RECORD, record)
    self._barrier()
    seconds = _found(path, wait=not self._builds)["seconds"]
    self.timings[name] = {"seconds": seconds, "reused": reused}
    _log.info("%s: %s", name, f"reused {path}" if reused else f"done in {seconds:.1f} s")
    return path

  def arrays(
    self, name: str, inputs: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
  ) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a stage, made unless it exists, and the stage's name."""
    file = f"{name}.npz"
    stage = self.stage(name, inputs, lambda directory: np.savez(directory / file, **make()))
    with np.load(stage / file) as stored:
      return dict(stored), stage.name

  @contextlib.contextmanager
  def timed(self, name: str) -> Iterator[None]:
    """Times work that is not a stage."""
    start = time.perf_counter()
    yield
    self.timings[name] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}


def _found(directory: pathlib.Path, *, wait: bool) -> dict[str, Any]:
  """Returns the record of a complete stage; waits for file systems that show it late."""
  deadline = time.monotonic() + _VISIBLE_AFTER
  while wait and not (directory / _RECORD).exists():
    if time.monotonic() > deadline:
      raise RunError(
        f"{directory} was built by the chief and is not visible here after {_VISIBLE_AFTER:.0f} s:"
        " give all workers the same work directory, on a file system that they share"
      )
    time.sleep(0.1)
  return json.loads((directory / _RECORD).read_text(encoding="utf-8"))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON with `atomic_write`."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 text with `atomic_write`."""
  with atomic_write(path) as file:
    file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write to; the file then replaces `path` in one step.

  Readers see the old content or the new, never a part, also after a crash. If the block raises,
  `path` stays as it was.
  """
  path = pathlib.Path(path)
  # Two processes may write the same file: each needs a temporary name of its own.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.{_PARTIAL}")
  try:
    yield temporary
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty directory to fill; it then replaces `path`.

  The name is the same at each attempt, so that a killed process's remains are removed by the next.
  A directory that exists at `path` is renamed before it is deleted. If the block raises, `path`
  stays as it was.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{_PARTIAL}")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    for file in temporary.rglob("*"):
      _sync(file)
    _sync(temporary)
    remove_directory(path)
    temporary.rename(path)
    _sync(path.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def remove_directory(path: pathlib.Path) -> None:
  """Deletes a directory, if it exists; a part of it is never seen under its name."""
  if path.exists():
    old = path.with_name(f".{path.name}.old.{_PARTIAL}")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(path.rename(old))


def remove_partial(directory: pathlib.Path) -> None:
  """Deletes what killed processes left of atomic directories in `directory`."""
  for remains in directory.glob(f".*.{_PARTIAL}"):
    shutil.rmtree(remains, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
  """Flushes a file, or the entries of a directory, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    if not path.is_dir():  # some file systems cannot flush directories
      raise
  finally:
    os.close(descriptor)
