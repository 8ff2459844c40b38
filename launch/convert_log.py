"""Checks a log and writes it as native TFRecord shards, with the schema that reads them.

python -m launch.convert_log --log=FILE --schema=FILE --output=DIR --num_shards=8

A part of the log is in memory at a time. DIR appears when it is complete. Exit code 0: written; 1:
bad rows and --on_bad_rows=fail, nothing is written; 2: wrong usage, or a file cannot be read.
"""

import sys

from absl import flags

from launch import config as launch_config


def define_flags() -> None:
  launch_config.define_flags("log", "schema", "users", "on_bad_rows")
  flags.DEFINE_string("output", None, "directory of the shards")
  flags.DEFINE_integer("num_shards", 4, "number of shards", lower_bound=1)
  flags.DEFINE_bool("gzip", False, "compress the shards")


def main() -> int:
  log, schema, output = launch_config.required("log", "schema", "output")
  values = flags.FLAGS

  import tqdm

  from tf_twostage.data.files.bad_rows import BadRowsError
  from tf_twostage.data.files.shards import convert

  with tqdm.tqdm(unit=" rows", unit_scale=True) as bar:

    def progress(rows: int, expected: int) -> None:
      bar.total = expected
      bar.update(rows)

    try:
      rows, bad_rows = convert(
        log,
        output,
        schema,
        num_shards=values.num_shards,
        compress=values.gzip,
        user_features=values.users is None,
        on_bad_rows=values.on_bad_rows,
        progress=progress,
      )
    except BadRowsError as error:
      bar.close()
      print(f"error: {error}\nnothing was written", file=sys.stderr)
      return 1
    bar.total = bar.n
  if bad_rows.faults:
    print(f"left out:\n{bad_rows.message()}", file=sys.stderr)
  print(f"{output}: {rows:,} rows in {values.num_shards} shards; read them with its schema.yaml")
  return 0


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
