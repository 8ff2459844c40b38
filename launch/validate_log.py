"""Reports on a log: bad rows, sums of propensities, overlap with other policies, leaks.

python -m launch.validate_log --log=FILE --schema=FILE --items=FILE --output=DIR

Exit code 0: usable; 1: unusable, or it has bad rows and --on_bad_rows=fail; 2: wrong usage, or a
file cannot be read. With --output, DIR gets report.json and report.png.
"""

import os
import pathlib
from typing import Any

from absl import flags

from launch import config as launch_config
from launch import steps
from tf_twostage.config import UserLogConfig
from tf_twostage.errors import InputError

_FILES = ("log", "schema", "items", "users", "on_bad_rows")
_SPLIT = ("split", "validation_share", "test_share")
_UNKNOWN_TO_TRAINING = ("output", "policy")


def define_flags() -> None:
  launch_config.define_flags(*_FILES, *_SPLIT, "environment_seed")
  text = "directory for report.json and report.png; without it the report is printed only"
  flags.DEFINE_string("output", None, text)
  text = "another policy to compare with: CSV or Parquet (item_id, probability, perhaps position)"
  flags.DEFINE_string("policy", None, text)


def main() -> int:
  log, schema = launch_config.required("log", "schema")
  values = flags.FLAGS
  given: dict[str, Any] = {name: values[name].value for name in (*_FILES, *_SPLIT)}
  settings = UserLogConfig(**given)
  output = None if values.output is None else _directory(values.output)

  from tf_twostage.data import assemble
  from tf_twostage.data.check import examine
  from tf_twostage.data.files.bad_rows import BadRows, BadRowsError
  from tf_twostage.data.log import BanditLog

  bad_rows = BadRows()
  options = {"on_bad_rows": values.on_bad_rows, "bad_rows": bad_rows}
  try:
    raw = assemble.read(log, values.items, values.users, schema, **options)
  except BadRowsError:
    if not bad_rows.faults:  # those of the items or users file, which must be complete
      raise
    report = examine.refused(log, bad_rows)
  else:
    report = examine.check(
      BanditLog.from_raw(raw),
      values.policy,
      split=settings.split,
      shares={"validation": settings.validation_share, "test": settings.test_share},
      seed=values.environment_seed,
      bad_rows=bad_rows,
    )
  if output is not None:
    report.save(output)
  print(report)
  if report.usable:
    preset = "--flagfile=launch/user_log.flags"
    print(f"\nNext: {steps.command_line('train', preset, without=_UNKNOWN_TO_TRAINING)}")
  return 0 if report.usable else 1


def _directory(name: str) -> pathlib.Path:
  """Creates the directory before the log is read, which may take long."""
  directory = pathlib.Path(name)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
      raise PermissionError(13, "Permission denied")
  except OSError as error:
    raise InputError(
      f"{name}: the report cannot be written ({error.strerror}); name a directory that can"
    ) from None
  return directory


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
