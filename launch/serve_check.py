"""Tries an export as a server would, in a process that has nothing but TensorFlow.

python -m launch.serve_check --model=saved_models/ml1m
python -m launch.serve_check --model=saved_models/ml1m/3 --repeats=1000

Loads it with the C++ loader and into a session, makes the calls it warms up on, compares the
answers with those of the process that exported it, and says what it takes, how large it is and how
long it takes. Exit code 0: it answers as it should; 1: it does not load, or answers otherwise; 2:
wrong usage, or there is nothing to compare with.
"""

import pathlib
import sys

from absl import flags

from launch import config as launch_config
from tf_twostage.errors import InputError

_OWN_FLAGS = {
  "model": "directory of versions, of which the newest is tried; or one version",
  "repeats": "how often each call is made, for the times",
}


def define_flags() -> None:
  flags.DEFINE_string("model", None, _OWN_FLAGS["model"])
  flags.DEFINE_integer("repeats", 200, _OWN_FLAGS["repeats"], lower_bound=1)


def main() -> int:
  values = flags.FLAGS
  if not values.model:
    raise InputError("--model must be given: a directory of versions, or one version")

  from tf_twostage.serving import check_report

  report, same = check_report.check(pathlib.Path(values.model), repeats=values.repeats)
  print(report, file=sys.stdout if same else sys.stderr)
  return 0 if same else 1


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main, {"The check": tuple(_OWN_FLAGS)})
