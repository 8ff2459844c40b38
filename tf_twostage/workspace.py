"""A work directory: stages that are built once; files are complete and undamaged, or not used.

What is read again is sealed: a record beside the files holds their SHA-256, and its own, so that a
damaged file is noticed before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import tf_twostage
from tf_twostage.errors import InputError, RunError

_log = logging.getLogger(__name__)

_RECORD, _PLAN = "stage.json", "plan.json"
_FILES, _DIGEST = "files", "sha256"  # in a record: the digest of each file, and of the record
_PARTIAL = "partial"
_DAMAGED, LOCK = ".damaged", ".lock"
_BYTES_PER_CHUNK = 2**20
# why the system may refuse to write
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_VISIBLE_AFTER = 60.0  # seconds; network file systems cache for so long that a file is missing


def fingerprint(inputs: Mapping[str, Any]) -> str:
  """Returns a short digest of JSON-able inputs and the version of this package."""
  versioned = {"version": tf_twostage.__version__, "inputs": inputs}
  text = json.dumps(versioned, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:10]


class Workspace:
  """Cache of named stages, each in a directory `root/<name>-<fingerprint>/`.

  Another version of this package builds its own stages. A stage that is not as it was written is
  set aside and built again. Two processes do not build the same one at the same time.

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
    reused = not self._builds or is_intact(path, _RECORD)
    if not reused:
      with locked(path.with_name(f".{path.name}{LOCK}")):
        reused = is_intact(path, _RECORD, warn=True)  # another process may have built it
        if not reused:
          set_aside(path)
          self._build(path, inputs, build)
    self._barrier()
    seconds = _found(path, wait=not self._builds)["seconds"]
    self.timings[name] = {"seconds": seconds, "reused": reused}
    _log.info("%s: %s", name, f"reused {path}" if reused else f"done in {seconds:.1f} s")
    return path

  def _build(
    self, path: pathlib.Path, inputs: Mapping[str, Any], build: Callable[[pathlib.Path], object]
  ) -> None:
    with atomic_directory(path) as directory:
      start = time.perf_counter()
      build(directory)
      seconds = round(time.perf_counter() - start, 2)
      facts = {"seconds": seconds, "version": tf_twostage.__version__, "inputs": inputs}
      seal(directory, _RECORD, facts)

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


class Damaged(Exception):
  """A file is not as it was written; the message names it."""


def seal(directory: pathlib.Path, record: str, facts: Mapping[str, Any]) -> None:
  """Writes JSON-able facts and the SHA-256 of every file below a directory to the file `record`."""
  files = sorted(path for path in directory.rglob("*") if path.is_file())
  digests = {str(path.relative_to(directory)): _sha256(path) for path in files}
  write_record(directory / record, {**facts, _FILES: digests})


def unseal(directory: pathlib.Path, record: str) -> dict[str, Any]:
  """The facts of a sealed directory; Damaged unless every file is as it was when it was sealed."""
  content = read_record(directory / record)
  for name, digest in content.pop(_FILES).items():
    try:
      found = _sha256(directory / name)
    except OSError as error:
      raise Damaged(f"{directory / name} cannot be read ({error.strerror})") from None
    if found != digest:
      raise Damaged(f"{directory / name} was changed after it was written")
  return content


def write_record(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Writes JSON-able facts with their own SHA-256."""
  content = json.loads(to_json(facts))
  write_json(path, {**content, _DIGEST: _sha256_of(content)})


def read_record(path: pathlib.Path) -> dict[str, Any]:
  """The facts that `write_record` wrote; Damaged unless they are as they were written."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    digest = content.pop(_DIGEST, None)
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise Damaged(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
  if digest != _sha256_of(content):
    raise Damaged(f"{path} was changed after it was written")
  return content


def is_intact(directory: pathlib.Path, record: str, *, warn: bool = False) -> bool:
  """Whether a sealed directory exists and is as it was written; may log what is damaged."""
  try:
    if directory.exists():
      unseal(directory, record)
      return True
  except Damaged as error:
    if warn:
      _log.warning("%s; it is set aside and built again", error)
  return False


def set_aside(directory: pathlib.Path) -> None:
  """Renames a damaged directory, if it exists, to NAME.damaged, and deletes an earlier one."""
  if directory.exists():
    aside = directory.with_name(directory.name + _DAMAGED)
    remove_directory(aside)
    directory.rename(aside)


def results_directory(path: pathlib.Path, plan: Any) -> pathlib.Path:
  """The directory for the results of a JSON-able plan: `path`, or PATH-2, PATH-3, ... if others
  have results of another plan; the same plan finds its own again."""
  wanted = json.loads(to_json({"plan": plan}))
  with locked(path.with_name(f".{path.name}{LOCK}")):
    for number in itertools.count(1):
      directory = path if number == 1 else path.with_name(f"{path.name}-{number}")
      with contextlib.suppress(Damaged):  # or it does not exist
        if read_record(directory / _PLAN) != wanted:
          continue
      directory.mkdir(exist_ok=True)
      write_record(directory / _PLAN, wanted)
      return directory
  raise AssertionError


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Waits until no other process holds this lock, a file that names its holder.

  A killed process leaves the file, but not the lock.
  """
  with contextlib.suppress(FileExistsError):  # opening says what is wrong: not a directory
    path.parent.mkdir(parents=True, exist_ok=True)
  while True:
    file = path.open("a+", encoding="utf-8")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read() or "another process"
      _log.warning("waiting for %s, which works in %s", holder, path.parent)
      fcntl.flock(file, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(path.stat(), os.fstat(file.fileno())):
        break
    file.close()  # its last holder has deleted it
  try:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    yield
  finally:
    path.unlink(missing_ok=True)
    file.close()


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while chunk := file.read(_BYTES_PER_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def _sha256_of(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_json(value: Any) -> str:
  """Indented JSON; null takes the place of numbers that JSON does not have."""
  return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _finite(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return list(map(_finite, value))
  value = value.item() if isinstance(value, np.generic) else value
  return None if isinstance(value, float) and not math.isfinite(value) else value


def with_nan(value: Any) -> Any:
  """What was read of JSON with NaN in place of null: the inverse of `to_json`."""
  if isinstance(value, dict):
    return {name: with_nan(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return list(map(with_nan, value))
  return math.nan if value is None else value


def read_numbers(path: pathlib.Path) -> Any:
  """JSON with NaN in place of null."""
  return with_nan(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON with `atomic_write`."""
  write_text(path, to_json(value) + "\n")


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

  Raises:
    OSError: also where TensorFlow or NumPy name the system's error in another type.
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
  except (InputError, RunError):
    raise
  except Exception as error:
    code = None if getattr(error, "errno", None) else _refused(str(error))
    if code is None:
      raise
    raise OSError(code, os.strerror(code), str(path)) from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _refused(message: str) -> int | None:
  """The code of `CANNOT_WRITE` that a message tells of."""
  if "requested and" in message and "written" in message:  # NumPy does not say why
    return errno.ENOSPC
  return next((code for code in CANNOT_WRITE if os.strerror(code) in message), None)


def make_directory(path: pathlib.Path, what: str) -> pathlib.Path:
  """Makes a directory that a user named, unless it exists; `what` says what it is for.

  Raises:
    InputError: a file is in the way, or the directory cannot be made.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"cannot make {error.filename}: {error.strerror}; name a writable directory as {what}"
    ) from error
  return path


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
