"""Drafts the schema of a log from the names and values of its columns, and prints it as YAML.

python -m launch.infer_schema --log=FILE --items=FILE > schema.yaml

Exit code 0: printed; 2: wrong usage, or a file cannot be read.
"""

import sys

from absl import flags

from launch import config as launch_config
from launch import steps


def main() -> None:
  (log,) = launch_config.required("log")

  from tf_twostage.data import draft

  text = draft.draft(log, flags.FLAGS.items, flags.FLAGS.users)
  print(text, end="", flush=True)
  first = "Next: fill in what is MISSING, then" if "MISSING" in text else "Next:"
  print(first, steps.command_line("validate_log", "--schema=schema.yaml"), file=sys.stderr)


if __name__ == "__main__":
  launch_config.define_flags("log", "items", "users")
  launch_config.run_command(main)
