"""Exports into numbered versions of a directory, which TensorFlow Serving watches.

Each version is complete, or it does not exist. It is written under a temporary name and renamed; an
old version is renamed before it is deleted. An export that is killed leaves at most a temporary
directory, which the next export deletes. A lock lets only one export at a time into a directory.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import tensorflow as tf
from absl import logging as absl_logging

from tf_twostage.data.schema import FeatureTable
from tf_twostage.errors import InputError, RunError
from tf_twostage.serving import check
from tf_twostage.serving.servable import ServableRecommender
from tf_twostage.workspace import (
  LOCK,
  Damaged,
  atomic_directory,
  locked,
  make_directory,
  remove_directory,
  remove_partial,
  seal,
  unseal,
  write_text,
)

_log = logging.getLogger(__name__)

KEEP = 5
_NO_FILES: Mapping[str, bytes] = types.MappingProxyType({})
EXTRA = "assets.extra"  # of a version; servers ignore unknown files in it
_RECORD = f"{EXTRA}/digests.json"
SERVER_FILES = ("models.config", "batching_parameters.txt", "docker-compose.yml")
_TEMPLATES = pathlib.Path(__file__).with_name("templates")

_Read = TypeVar("_Read")


def export(
  recommender: ServableRecommender,
  directory: pathlib.Path,
  requests: FeatureTable,
  *,
  keep: int = KEEP,
  extra: Mapping[str, bytes] = _NO_FILES,
) -> pathlib.Path:
  """Writes the next version. It appears after a process without this package has tested it.

  Args:
    recommender: what to export.
    directory: holds the versions, and files that start a server. Its name is the model's.
    requests: raw user and context features of a few users, [B, ...] each, and "exclude" [B, E]. The
      version must answer them as `recommender` does, and keeps them as warm-up requests.
    keep: how many versions stay, the new one included; the oldest are deleted.
    extra: content of further files in the version's directory `EXTRA`, by file name.
  """
  model = directory.resolve().name  # also for "."

  def write(version: pathlib.Path) -> None:
    with check.fresh_process() as process:
      calls = check.record(recommender, requests)
      save(recommender, version, extra)
      check.write(version, model, calls)
      answers = check.replay(version, calls, process)["answers"]
    different = check.differences(calls, answers)
    if different:
      raise RunError(
        f"the SavedModel does not repeat this process's answers to {', '.join(different)}; it was"
        " not exported: look for state outside of its variables, such as in an external ranker"
      )

  version = publish(directory, write, keep=keep)
  for name in SERVER_FILES:
    if not (directory / name).exists():  # edited files stay
      text = (_TEMPLATES / name).read_text(encoding="utf-8")
      write_text(directory / name, text.replace("@MODEL@", model))
  return version


def save(
  recommender: ServableRecommender,
  directory: pathlib.Path,
  extra: Mapping[str, bytes] = _NO_FILES,
) -> None:
  """Writes the SavedModel and `extra` files, untested and without warm-up requests."""
  signatures = {
    # There is no Python control flow; autograph would take most of the time to find that out.
    name: tf.function(method, autograph=False).get_concrete_function(**specs)
    for name, (method, specs) in recommender.signatures().items()
  }
  recommender.scores.get_concrete_function(**recommender.inputs)
  if (explain := getattr(recommender, "explain", None)) is not None:
    explain.get_concrete_function(item=tf.TensorSpec([None], tf.string), **recommender.inputs)
  with _quiet():
    tf.saved_model.save(
      recommender,
      str(directory),
      signatures={"serving_default": signatures["recommend"], **signatures},
      options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
  for name, content in extra.items():
    (directory / EXTRA).mkdir(exist_ok=True)
    (directory / EXTRA / name).write_bytes(content)


def load(version: pathlib.Path) -> Any:
  """The SavedModel of a version."""
  with _quiet():
    return tf.saved_model.load(str(version))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides what TensorFlow logs about renamed inputs in saving and missing gradients in loading."""
  before = absl_logging.get_verbosity(), tf.get_logger().level
  absl_logging.set_verbosity(absl_logging.ERROR)
  tf.get_logger().setLevel("ERROR")
  try:
    yield
  finally:
    absl_logging.set_verbosity(before[0])
    tf.get_logger().setLevel(before[1])


def versions(directory: pathlib.Path) -> list[pathlib.Path]:
  """The versions in `directory`, oldest first."""
  names = re.compile("[0-9]+")
  found = [p for p in directory.iterdir() if names.fullmatch(p.name) and p.is_dir()]
  return sorted(found, key=lambda path: int(path.name))


def latest(path: pathlib.Path) -> pathlib.Path:
  """A version itself, or the newest undamaged one in a directory of versions."""
  return _newest(path, lambda version: version)


def load_latest(path: pathlib.Path) -> tuple[pathlib.Path, Any]:
  """A version itself, or the newest one in a directory that loads; and its SavedModel."""
  return _newest(path, lambda version: (version, load(version)))


def _newest(path: pathlib.Path, read: Callable[[pathlib.Path], _Read]) -> _Read:
  """What `read` makes of the newest version that is not damaged; the log names damaged ones."""
  if (path / "saved_model.pb").is_file():
    found = [path]
  else:
    found = versions(path)[::-1] if path.is_dir() else []
  for version in found:
    try:
      _check_files(version)
      return read(version)
    except Damaged as error:
      reason = str(error)
    except Exception as error:  # TensorFlow raises many kinds for a damaged SavedModel
      said = " ".join(str(error).split())
      reason = f"{version} does not load ({type(error).__name__}: {said[:200]})"
    _log.warning("%s; version %s is not used", reason, version.name)
  if found:
    raise InputError(f"{path}: no undamaged version of a SavedModel; export it again")
  raise InputError(f"{path}: no version of a SavedModel; launch.export writes one")


def _check_files(version: pathlib.Path) -> None:
  """Raises Damaged. A version that was written without digests needs a SavedModel only."""
  if not (version / "saved_model.pb").is_file():
    raise Damaged(f"{version / 'saved_model.pb'} is missing")
  if (version / _RECORD).exists():
    unseal(version, _RECORD)


def publish(
  directory: pathlib.Path, write: Callable[[pathlib.Path], None], *, keep: int
) -> pathlib.Path:
  """Makes the next version by filling an empty directory; the newest `keep` versions stay."""
  if keep < 1:
    raise InputError(f"keep must be at least 1, got {keep}: the new version has to stay")
  make_directory(directory, "the export's directory")
  with locked(directory / LOCK):
    remove_partial(directory)
    number = max((int(path.name) for path in versions(directory)), default=0) + 1
    version = directory / str(number)
    with atomic_directory(version) as partial:
      write(partial)
      (partial / EXTRA).mkdir(exist_ok=True)
      seal(partial, _RECORD, {})
    for old in versions(directory)[:-keep]:
      remove_directory(old)
  return version
