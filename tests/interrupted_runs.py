"""Kills runs at random moments and resumes, until one finishes; and runs two at once.

By hand, other commands and more moments than the tests do:

  python -m tests.interrupted_runs --kills=20 --twins=10
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


_QUICK = (
  "--flagfile=launch/synthetic.flags",
  "--loss=ips",
  *(f"--{part}epochs=2" for part in ("", "simulator_", "behavior_", "ranker_")),
)
COMMANDS: dict[str, tuple[str, ...]] = {  # each with what it needs besides
  "train": (),
  "experiment": ("--losses=cross_entropy,ips", "--seeds=2", "--processes=1"),
  "evaluate": (),
  "loop": ("--rounds=2", "--draws=2"),
}


def begin(root: pathlib.Path, name: str) -> commands.Running:
  """Starts a command on the runs in `root`."""
  exports = () if name in ("experiment", "evaluate") else (f"--export_dir={root / 'export'}",)
  return commands.start(*_QUICK, *COMMANDS[name], f"--workdir={root / 'run'}", *exports, name=name)


def result(root: pathlib.Path, name: str, running: commands.Running) -> object:
  """All numbers of a command that has come to its end."""
  code, out, said = running.end()
  assert code == 0, said
  if name == "loop":
    return out.strip().split("\n\n")[-1]
  if name == "train":
    metrics = json.loads((root / "run" / "metrics.json").read_text())
    return {part: metrics[part] for part in ("best_epoch", "validation", "test", "baselines")}
  directory = root / "run" / {"evaluate": "evaluation"}.get(name, name)
  return {p.name: p.read_text() for p in directory.iterdir() if p.suffix != ".png"}


def fresh(root: pathlib.Path, name: str) -> pathlib.Path:
  """A directory in which a command can be run, nothing of which is done yet."""
  root.mkdir()
  if name == "evaluate":
    trained = root.with_name("trained")
    if not trained.exists():
      result(trained, "train", begin(trained, "train"))
    shutil.copytree(trained, root, dirs_exist_ok=True)
  return root


def attempts(directory: pathlib.Path, name: str, kills: int, twins: int) -> int:
  """Kills a command, then runs it to its end; and runs two at once; how often results differ."""
  whole = fresh(directory / name, name)
  start = time.monotonic()
  expected = result(whole, name, begin(whole, name))
  seconds = time.monotonic() - start
  moments, number, hits, wrong = random.Random(0), 0, 0, 0
  cut = fresh(directory / f"{name}-cut-0", name)
  while hits < kills:
    running = begin(cut, name)
    running.process.join(seconds ** moments.random())  # most kills early: others resume
    if running.process.is_alive():
      running.stop(signal.SIGKILL)
      hits += 1
    else:
      wrong += result(cut, name, running) != expected
      number += 1
      cut = fresh(directory / f"{name}-cut-{number}", name)
  wrong += result(cut, name, begin(cut, name)) != expected
  print(f"{name}: {hits} kills of {number + 1} runs; different: {wrong}", flush=True)
  for number in range(twins):
    root = fresh(directory / f"{name}-{number}", name)
    pair = [begin(root, name) for _ in range(2)]
    different = sum(result(root, name, one) != expected for one in pair)
    wrong += different
    print(f"{name}: two at once, {number}: different: {different}", flush=True)
  return wrong


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--twins", type=int, default=0, help="how often two run at once")
  parser.add_argument("--commands", nargs="*", default=[*COMMANDS])
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    wrong = sum(attempts(root, name, given.kills, given.twins) for name in given.commands)
  print("the same to the last bit" if not wrong else "DIFFERENT")
  sys.exit(wrong > 0)


if __name__ == "__main__":
  main()
