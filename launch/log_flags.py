"""Flags that the commands on logs share."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from launch import config as launch_config
from tf_twostage.errors import InputError

_HELP = {
  "log": "the log: a file, a directory, or a quoted pattern; CSV, Parquet or TFRecord",
  "schema": "which column is what: a YAML or JSON file, or native, or open_bandit;"
  " python -m launch.infer_schema drafts one",
  "items": "file with a row for each item; without it the catalogue is what was logged",
  "users": "file with a row for each user; without it user features are columns of the log",
  "on_bad_rows": "fail: report bad rows and stop; skip: report them and go on without",
}
TITLE = "The log"


def define(*names: str) -> None:
  """Defines some of the shared flags."""
  for name in names:
    if name == "on_bad_rows":
      flags.DEFINE_enum(name, "fail", ["fail", "skip"], _HELP[name])
    else:
      flags.DEFINE_string(name, "native" if name == "schema" else None, _HELP[name])


def required(*names: str) -> list[str]:
  """Values of flags that must be given.

  Raises:
    InputError: one is not.
  """
  missing = [f"--{name}" for name in names if not flags.FLAGS[name].value]
  if missing:
    raise InputError(f"{' and '.join(missing)} must be given; see --help")
  return [str(flags.FLAGS[name].value) for name in names]


def run(main, names: Sequence[str], own: Sequence[str] = ()) -> None:
  """Runs a command with these shared flags, and flags of its own that it has defined."""
  define(*names)
  groups = {TITLE: list(names)}
  if own:
    groups["This command"] = list(own)
  launch_config.run_command(main, groups)
