"""Compares objectives in several environments, and sums them up in one table and one plot.

python -m launch.benchmark --data_dir=DIR
python -m launch.benchmark --environments=synthetic,jester --data_dir=DIR --logs=2 --epochs=3

launch/benchmark.yaml lists the environments, with their flags of launch.experiment. Other flags on
the command line apply to every environment and win over those of the file. Each environment has a
directory of its own in the work directory, so environments can be run one by one, and the same
command resumes a killed run. table.md and benchmark.png compare all that are finished.
"""

from __future__ import annotations

import pathlib
import shlex
import subprocess  # nosec B404 # starts this package's own command
import sys
from collections.abc import Callable, Mapping, Sequence

import yaml
from absl import flags

from launch import config as launch_config
from tf_twostage import plotting
from tf_twostage.errors import InputError, RunError
from tf_twostage.reports import benchmark as report
from tf_twostage.training import signals
from tf_twostage.workspace import make_directory, write_text

_LIST = pathlib.Path(__file__).with_suffix(".yaml")


def define_flags() -> None:
  """Defines the command's own flags; those of launch.experiment would import TensorFlow."""
  flags.DEFINE_string("data_dir", None, "takes the place of {data} in the list")
  flags.DEFINE_string("workdir", "runs/benchmark", "results, a directory for each environment")
  flags.DEFINE_string("benchmark", str(_LIST), "YAML file that lists the environments")
  flags.DEFINE_list("environments", [], "names of environments to run; default all")


def main(given: Sequence[str]) -> None:
  values = flags.FLAGS
  workdir = make_directory(pathlib.Path(values.workdir), "--workdir")
  known = read_list(pathlib.Path(values.benchmark), values.data_dir, values.environments)
  print(run(known, values.environments or [*known], given, workdir))


def read_list(
  path: pathlib.Path, data: str | None, chosen: Sequence[str] = ()
) -> dict[str, list[str]]:
  """The flags of every environment in a file, in its order.

  Args:
    path: of a YAML file with `all`, flags of every environment, and `environments`, flags by name.
    data: takes the place of {data}.
    chosen: names that are about to run.

  Raises:
    InputError: the file is wrong, a name is unknown, or one that is chosen needs `data`.
  """
  try:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    shared, texts = (
      str(content["all"]),
      {str(n): str(t) for n, t in content["environments"].items()},
    )
  except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"{path}: not a list of environments ({error}); write `all`, flags of every environment, and"
      " `environments`, flags by name"
    ) from error
  if unknown := [name for name in chosen if name not in texts]:
    raise InputError(f"{path}: no environment {', '.join(unknown)}; there are {', '.join(texts)}")
  needing = [name for name in chosen or texts if "{data}" in texts[name]]
  if needing and data is None:
    raise InputError(f"--data_dir must be given: {', '.join(needing)} read files in it")
  return {n: shlex.split(f"{shared} {t}".replace("{data}", str(data))) for n, t in texts.items()}


def run(
  known: Mapping[str, Sequence[str]],
  chosen: Sequence[str],
  given: Sequence[str],
  workdir: pathlib.Path,
  start: Callable[[Sequence[str]], int] | None = None,
) -> str:
  """Runs the chosen environments, one after the other; returns the summary of all finished ones.

  Args:
    known: flags of each environment, by name.
    chosen: names of those to run.
    given: flags that win over these.
    workdir: gets a directory for each environment, table.md and benchmark.png.
    start: runs launch.experiment with flags, and returns its exit code.

  Raises:
    RunError: environments failed; the others are finished.
  """
  failed = []
  for name in chosen:
    print(f"== {name}", flush=True)
    if (start or _start)([*known[name], *given, f"--workdir={workdir / name}"]):
      failed.append(name)
    else:
      _sum_up(known, workdir)
  if failed:
    raise RunError(
      f"{', '.join(failed)} failed, for reasons given above; the others are finished, and the same"
      " command goes on with these"
    )
  return f"{_sum_up(known, workdir)}\n\nTable and figure: {workdir}"


def _start(arguments: Sequence[str]) -> int:
  command = [sys.executable, "-m", "launch.experiment", *arguments]
  process = subprocess.Popen(command)  # nosec B603 # no shell
  try:
    return process.wait()
  except signals.Stopped:
    process.terminate()  # it saves its state
    process.wait()
    raise


def _sum_up(known: Mapping[str, Sequence[str]], workdir: pathlib.Path) -> str:
  """Writes the summary of all finished environments, and returns its table."""
  outcomes = {}
  for name in known:
    finished = sorted(
      (workdir / name).glob("experiment*/table.md"), key=lambda p: p.stat().st_mtime
    )
    if finished:  # of several experiments, the last one that ran
      outcomes[name] = report.Outcome.read(finished[-1].parent)
  table = report.to_markdown(outcomes)
  write_text(workdir / "table.md", table)
  plotting.save({workdir / "benchmark.png": lambda: report.by_environment(outcomes)})
  return table


if __name__ == "__main__":
  define_flags()
  launch_config.run_command(main, preset="", passes_on=True)
