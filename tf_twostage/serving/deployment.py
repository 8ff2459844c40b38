"""Files that start a stock TensorFlow Serving on a directory of versions."""

from __future__ import annotations

import pathlib

from tf_twostage.workspace import write_text

_TEMPLATES = pathlib.Path(__file__).with_name("templates")
FILES = ("models.config", "batching_parameters.txt", "docker-compose.yml")


def write(directory: pathlib.Path, model: str) -> None:
  """Puts the files beside the versions, where they are not yet: what was edited stays.

  Args:
    directory: holds the versions.
    model: the name under which they are served.
  """
  for name in FILES:
    if not (directory / name).exists():
      text = (_TEMPLATES / name).read_text(encoding="utf-8")
      write_text(directory / name, text.replace("@MODEL@", model))
