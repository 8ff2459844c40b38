"""Says what a log is worth: bad rows, sums of propensities, overlap with other policies, leaks.

python -m launch.validate_log --log=FILE --schema=FILE --items=FILE --output=DIR

Exit code 0: usable; 1: unusable, or it has bad rows and --on_bad_rows=fail; 2: wrong usage, or a
file cannot be read. With --output, DIR gets report.json and report.png.
"""

import pathlib

from absl import flags

from launch import log_flags
from tf_twostage.data import splits

_SHARED = ("log", "schema", "items", "users", "on_bad_rows")
_OWN_FLAGS = {
  "output": "directory for report.json and report.png; without it the report is printed only",
  "policy": "another policy to judge by this log: CSV or Parquet with item_id, probability and"
  " perhaps position",
  "split": "auto, " + ", ".join(f"{name} ({what})" for name, what in splits.METHODS.items()),
  "validation_share": "share of rows (by user: of users) that validates",
  "test_share": "share that tests",
  "split_seed": "of what is drawn",
}


def define_flags() -> None:
  flags.DEFINE_string("output", None, _OWN_FLAGS["output"])
  flags.DEFINE_string("policy", None, _OWN_FLAGS["policy"])
  flags.DEFINE_enum("split", "auto", ["auto", *splits.METHODS], _OWN_FLAGS["split"])
  flags.DEFINE_float("validation_share", 0.1, _OWN_FLAGS["validation_share"])
  flags.DEFINE_float("test_share", 0.1, _OWN_FLAGS["test_share"])
  flags.DEFINE_integer("split_seed", 0, _OWN_FLAGS["split_seed"])


def main() -> int:
  log, schema = log_flags.required("log", "schema")
  values = flags.FLAGS

  from tf_twostage.data.check import validate

  report = validate.validate(
    log,
    schema,
    items=values.items,
    users=values.users,
    policy=values.policy,
    on_bad_rows=values.on_bad_rows,
    split_method=values.split,
    split_options={
      "validation": values.validation_share,
      "test": values.test_share,
      "seed": values.split_seed,
    },
    output=None if values.output is None else pathlib.Path(values.output),
  )
  print(report)
  return 0 if report.usable else 1


if __name__ == "__main__":
  define_flags()
  log_flags.run(main, _SHARED, tuple(_OWN_FLAGS))
