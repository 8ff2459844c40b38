"""What a large log of impressions costs: drafting its schema, reporting on it, and training.

  python -m benchmarks.impressions --directory=DIR

writes an invented log once (200,000 slates of 10 slots, 2,000,000 rows of CSV) and runs
`launch.infer_schema` and `launch.validate_log` on it, each in a process of its own, as a user does.
Then it trains on the same log, once as single items with 2-IPS, which teaches the generator, and
once as slates with two-stage learning to rank, which teaches both stages. The two take turns of
--steps steps in one process; of both stages, each learns in half of them.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage.config import FitConfig, GeneratorConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.sets import make_slates

TABLES = ("log", "items", "users")


def write(directory: pathlib.Path, slates: int, items: int) -> None:
  """The files of the log, unless they are there."""
  if (directory / "log.csv").exists():
    return
  directory.mkdir(parents=True, exist_ok=True)
  world = make_slates(num_items=items)
  world.items.to_csv(directory / "items.csv", index=False)
  world.users.to_csv(directory / "users.csv", index=False)
  world.frame(slates).to_csv(directory / "log.csv", index=False)


def run(name: str, directory: pathlib.Path, *flags: str) -> tuple[str, str]:
  """What a command prints, and what it took."""
  files = [f"--{table}={directory / table}.csv" for table in TABLES]
  command = [sys.executable, "-m", f"launch.{name}", *files, *flags]
  start = time.perf_counter()
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  said = process.stdout.read()
  _, status, used = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{name} failed")
  return said, (
    f"{name:14s}{time.perf_counter() - start:6.1f} s, {used.ru_utime + used.ru_stime:6.1f} s of a"
    f" processor, {used.ru_maxrss / 2**20:5.2f} GiB"
  )


def turn(log: BanditLog, model: Any, steps: int) -> tuple[Callable[[], object], int]:
  """Steps of training on the rows that the loss learns from, and the number of these rows."""
  from tf_twostage.environment.user_log import log_environment
  from tf_twostage.recommender import rows_to_learn
  from tf_twostage.training.loop import make_optimizer
  from tf_twostage.workspace import Workspace

  with tempfile.TemporaryDirectory() as stages:
    environment = log_environment(model.config, log, None, Workspace(pathlib.Path(stages)))
  generator = model.fresh_generator(environment)
  settings = model.config.generator
  generator.compile(optimizer=make_optimizer(settings))
  rows = rows_to_learn(model.config, generator.objective, environment.log)
  users, step = environment.tables.users, generator.make_train_function()
  batches = iter(rows.batches(users, batch_size=settings.batch_size, seed=0))

  def run():
    for turn in (0, 1):  # of an epoch each, if both stages learn
      generator.optimizer.iterations.assign(turn * len(rows) // settings.batch_size)
      taken = [step(batches) for _ in range(steps // 2)]
    return taken[-1]["total_loss"]

  return run, len(rows)


def train(args: argparse.Namespace) -> None:
  """Rows a second of both, and their ratio."""
  # TensorFlow comes after the commands, whose peak memory would include it.
  from benchmarks import measuring
  from tf_twostage import TwoStageRecommender

  schema = LogSchema.from_file(args.directory / "schema.yaml")
  files = {table: args.directory / f"{table}.csv" for table in TABLES}
  slates = BanditLog.from_files(**files, schema=schema)
  single = BanditLog.from_files(
    **files,
    schema=LogSchema.from_dict(
      schema.to_dict() | dict.fromkeys(("slate_id", "cascade_propensity"))
    ),
  )
  shared = {
    "slate_size": 10,
    "training": GeneratorConfig(batch_size=args.batch_size),
    "ranker_training": FitConfig(epochs=1, batch_size=4096),
  }
  runs, rows = {}, {}
  for name, log, options in (
    ("single items", single, {}),
    ("both stages", slates, {"loss": "two_stage_ltr", "train": "both"}),
  ):
    runs[name], rows[name] = turn(log, TwoStageRecommender(**options, **shared), args.steps)
  times = measuring.take_turns(runs, args.turns, warm_up=1)
  speed = {
    n: args.steps // 2 * 2 * args.batch_size / np.median(t.processor) for n, t in times.items()
  }
  for name in runs:
    print(
      f"{name:14s}{speed[name]:10,.0f} rows a second of a processor, {rows[name]:,} rows an epoch"
    )
  ratio = np.median(times["single items"].processor / times["both stages"].processor)
  print(f"both stages / single items: {ratio:.2f}")


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--directory", type=pathlib.Path, required=True)
  parser.add_argument("--slates", type=int, default=200_000)
  parser.add_argument("--items", type=int, default=100)
  parser.add_argument("--batch_size", type=int, default=GeneratorConfig.batch_size)
  parser.add_argument("--steps", type=int, default=50, help="of a turn")
  parser.add_argument("--turns", type=int, default=9)
  args = parser.parse_args()
  write(args.directory, args.slates, args.items)
  schema, drafted = run("infer_schema", args.directory)
  (args.directory / "schema.yaml").write_text(schema)
  print(drafted, flush=True)
  flags = f"--schema={args.directory / 'schema.yaml'}", f"--output={args.directory / 'report'}"
  print(run("validate_log", args.directory, *flags)[1], flush=True)
  train(args)


if __name__ == "__main__":
  main()
