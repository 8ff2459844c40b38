"""Says what a log is worth: bad rows, sums of propensities, overlap with other policies, leaks.

python -m launch.validate_log --log=FILE --schema=FILE --items=FILE --output=DIR

Exit code 0: usable; 1: unusable, or it has bad rows and --on_bad_rows=fail; 2: wrong usage, or a
file cannot be read. With --output, DIR gets report.json and report.png.
"""

import pathlib

from absl import flags

from launch import config as launch_config
from tf_twostage.data import splits


def define_flags() -> None:
  launch_config.define_flags("log", "schema", "items", "users", "on_bad_rows")
  text = "directory for report.json and report.png; without it the report is printed only"
  flags.DEFINE_string("output", None, text)
  text = "another policy to compare with: CSV or Parquet (item_id, probability, perhaps position)"
  flags.DEFINE_string("policy", None, text)
  methods = ", ".join(f"{name} ({what})" for name, what in splits.METHODS.items())
  flags.DEFINE_enum("split", "auto", ["auto", *splits.METHODS], f"auto, {methods}")
  flags.DEFINE_float("validation_share", 0.15, "share of rows (by user: of users) that validate")
  flags.DEFINE_float("test_share", 0.15, "share of rows (by user: of users) that test")
  flags.DEFINE_integer("split_seed", 0, "seed of random splits")


def main() -> int:
  log, schema = launch_config.required("log", "schema")
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
  launch_config.run_command(main)
