"""Drafts the schema of a log from the names and values of its columns, and prints it as YAML.

python -m launch.infer_schema --log=FILE --items=FILE > schema.yaml

Exit code 0: printed; 2: wrong usage, or a file cannot be read.
"""

from absl import flags

from launch import config as launch_config


def main() -> None:
  (log,) = launch_config.required("log")

  from tf_twostage.data import draft

  print(draft.draft(log, flags.FLAGS.items, flags.FLAGS.users), end="")


if __name__ == "__main__":
  launch_config.define_flags("log", "items", "users")
  launch_config.run_command(main)
