"""Numbered versions in a directory that a server watches: each is whole, or is not there.

A version is written aside and renamed; one that has to go is renamed before it is deleted. A
process that is killed at any moment leaves nothing with a number that is not whole. What it left
aside the next export sweeps away, which it may because exports into a directory take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

from tf_twostage.errors import InputError
from tf_twostage.workspace import atomic_directory, remove_directory, remove_partial


def versions(directory: pathlib.Path) -> list[pathlib.Path]:
  """The versions in `directory`, oldest first."""
  found = [p for p in directory.iterdir() if p.name.isdigit() and p.is_dir()]
  return sorted(found, key=lambda path: int(path.name))


def latest(path: pathlib.Path) -> pathlib.Path:
  """A version itself, or the newest one in a directory of versions.

  Raises:
    InputError: there is none.
  """
  if (path / "saved_model.pb").is_file():
    return path
  found = versions(path) if path.is_dir() else []
  if not found:
    raise InputError(f"{path}: no version of a SavedModel; launch.export writes one")
  return found[-1]


def publish(
  directory: pathlib.Path, write: Callable[[pathlib.Path], None], *, keep: int
) -> pathlib.Path:
  """Makes the next version.

  Args:
    directory: holds the versions.
    write: fills an empty directory; if it raises, there is no new version.
    keep: how many versions stay, the new one counted; the oldest go.

  Returns:
    The new version.

  Raises:
    InputError: keep is below 1.
  """
  if keep < 1:
    raise InputError(f"keep must be at least 1, got {keep}: the new version has to stay")
  directory.mkdir(parents=True, exist_ok=True)
  with _turn(directory):
    remove_partial(directory)
    number = max((int(path.name) for path in versions(directory)), default=0) + 1
    version = directory / str(number)
    with atomic_directory(version) as aside:
      write(aside)
    for old in versions(directory)[:-keep]:
      remove_directory(old)
  return version


@contextlib.contextmanager
def _turn(directory: pathlib.Path) -> Iterator[None]:
  """Waits until no other process exports into `directory`; a process that dies gives way."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)
