"""Writes a recommender as the next version of a directory."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import tensorflow as tf
from absl import logging

from tf_twostage.data.schema import FeatureTable
from tf_twostage.errors import RunError
from tf_twostage.serving import calls, deployment, replay, versions
from tf_twostage.serving.recommender import Recommender

KEEP = 5


def export(
  recommender: Recommender,
  directory: pathlib.Path,
  requests: FeatureTable,
  *,
  keep: int = KEEP,
  extra: Mapping[str, bytes] | None = None,
) -> pathlib.Path:
  """Writes the next version, which appears when it has proved itself.

  Args:
    recommender: what to export.
    directory: holds the versions; files to start a server with are put beside them. Its name is
      the model's.
    requests: raw user and context features of a few users, and "exclude": what the version has to
      answer, in a process without this package, as `recommender` does; and warms up on.
    keep: how many versions stay, the new one counted.

  Returns:
    The new version's directory.

  Raises:
    RunError: the version does not load or answers differently; there is none then.
  """
  model = directory.resolve().name  # "." has one, too
  tried = calls.of_requests(recommender, requests)

  def write(version: pathlib.Path) -> None:
    save(recommender, version)
    for name, content in (extra or {}).items():
      (version / "assets.extra").mkdir(exist_ok=True)
      (version / "assets.extra" / name).write_bytes(content)
    calls.write(version, model, tried)
    different = replay.differences(tried, replay.replay(version, tried).answers)
    if different:
      raise RunError(
        f"the SavedModel does not repeat this process's answers to {', '.join(different)}; it was"
        " not exported: look for state outside of its variables, in a given ranker say"
      )

  version = versions.publish(directory, write, keep=keep)
  deployment.write(directory, model)
  return version


def save(recommender: Recommender, directory: pathlib.Path) -> None:
  """Writes the SavedModel alone."""
  signatures = {
    # Nothing here is Python control flow; looking for it would take most of the time.
    name: tf.function(method, autograph=False).get_concrete_function(**specs)
    for name, (method, specs) in recommender.signatures().items()
  }
  with _quiet():
    tf.saved_model.save(
      recommender,
      str(directory),
      signatures={"serving_default": signatures["recommend"], **signatures},
      options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Saving renames captured inputs and says so, once a name."""
  before = logging.get_verbosity(), tf.get_logger().level
  logging.set_verbosity(logging.ERROR)
  tf.get_logger().setLevel("ERROR")
  try:
    yield
  finally:
    logging.set_verbosity(before[0])
    tf.get_logger().setLevel(before[1])
