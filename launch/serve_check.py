"""Tests an export as a server would use it, in a process that has nothing but TensorFlow.

python -m launch.serve_check --model=saved_models/ml1m
python -m launch.serve_check --model=saved_models/ml1m/3 --repeats=1000

Loads it with the C++ loader and into a session, makes its warm-up calls, and compares the answers
with those of the process that exported it. Reports signatures, size and latency, and the recall of
an approximate index. Exit code 0: the answers are the same; 1: it does not load, or answers
differently; 2: wrong usage, or the version holds no recorded answers.
"""

import pathlib
import sys

from absl import flags

from launch import config as launch_config
from tf_twostage.errors import InputError


def define_flags() -> None:
  text = "directory of versions, whose newest is tested; or one version"
  flags.DEFINE_string("model", None, text)
  flags.DEFINE_integer("repeats", 200, "how often each call is timed", lower_bound=1)


def main() -> int:
  values = flags.FLAGS
  if not values.model:
    raise InputError("--model must be given: a directory of versions, or one version")

  from tf_twostage.serving import check, exporting
  from tf_twostage.serving.served import Served

  version, model = exporting.load_latest(pathlib.Path(values.model))
  report, same = check.check(version, repeats=values.repeats)
  if same and hasattr(model, "explain"):
    report += f"\n\n{check.explained(model, check.read(version))}"
  if same and hasattr(model, "cells"):
    served, calls = Served.load(version), check.read(version)
    request = next(call.inputs for call in calls if call.signature == "recommend")
    k, found = served.settings["slate_size"], served.recall(request)
    report += f"\n\nrecall@{k} of the approximate index against exact: {found:.3f}"
  print(report, file=sys.stdout if same else sys.stderr)
  return 0 if same else 1


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main)
