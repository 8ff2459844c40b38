"""Kills runs of `launch.train` at random moments and resumes, until one finishes.

By hand, at more moments than the tests do:

  python -m tests.interrupted_runs --kills=10
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

from tests import commands
from tests.histories import timeless

SETTINGS = (
  "--flagfile=launch/synthetic.flags",
  "--loss=two_stage_ips:sampling=systematic:num_slates=5",
  "--simulator_epochs=1",
  "--behavior_epochs=2",
  "--ranker_epochs=2",
  "--checkpoint_every_steps=5",
)


def flags(root: pathlib.Path, *arguments: str) -> list[str]:
  return [*SETTINGS, f"--workdir={root / 'run'}", f"--export_dir={root / 'export'}", *arguments]


def finish(root: pathlib.Path, *arguments: str) -> dict:
  """Lets a run get to its end; its metrics, without what differs from run to run."""
  done = commands.run(*flags(root, *arguments), export=False)
  assert done.returncode == 0, done.stderr
  metrics = json.loads((root / "run" / "metrics.json").read_text())
  return {name: metrics[name] for name in ("best_epoch", "validation", "test")}


def histories(root: pathlib.Path) -> list:
  files = root.glob("run/generators/*/history.json")
  return [timeless(json.loads(file.read_text())) for file in files]


def share_environment(source: pathlib.Path, root: pathlib.Path) -> None:
  """So that a run in `root` begins with the generator's training."""
  shutil.copytree(source / "run" / "stages", root / "run" / "stages")


def checkpoints(root: pathlib.Path) -> set[str]:
  return {path.name for path in root.glob("run/generators/*/checkpoints/ckpt-*")}


def stop(root: pathlib.Path, number: int, seconds: float, *arguments: str) -> tuple[int, str]:
  """Runs until a checkpoint is written and a time has passed, then sends a signal.

  Returns:
    the exit code and what the run had to say.
  """
  before = checkpoints(root)
  running = commands.start(*flags(root, *arguments))
  running.wait_for(lambda: checkpoints(root) != before)
  time.sleep(seconds)
  running.stop(number)
  return running.process.exitcode, running.stderr()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--epochs", type=int, default=40)
  given = parser.parse_args()
  epochs = f"--epochs={given.epochs}"
  moments = random.Random(0)
  with tempfile.TemporaryDirectory() as directory:
    whole, cut = pathlib.Path(directory) / "whole", pathlib.Path(directory) / "cut"
    expected = finish(whole, epochs)
    share_environment(whole, cut)
    for _ in range(given.kills):
      code, _ = stop(cut, signal.SIGKILL, moments.uniform(0, 0.5), epochs)
      print(f"exit code {code}, checkpoints {sorted(checkpoints(cut))}", flush=True)
    same = finish(cut, epochs) == expected and histories(cut) == histories(whole)
  print("the same to the last bit" if same else "DIFFERENT")
  sys.exit(not same)


if __name__ == "__main__":
  main()
