"""Drafts the schema of a log from the names and values of its columns, and prints it as YAML.

python -m launch.infer_schema --log=FILE --items=FILE > schema.yaml

Exit code 0: printed; 2: wrong usage, or a file cannot be read.
"""

from absl import flags

from launch import log_flags


def main() -> None:
  (log,) = log_flags.required("log")

  from tf_twostage.data import draft

  print(draft.draft(log, flags.FLAGS.items, flags.FLAGS.users), end="")


if __name__ == "__main__":
  log_flags.run(main, ("log", "items", "users"))
