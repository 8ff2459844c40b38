"""Trains a two-stage recommender off-policy, evaluates it and exports it.

python -m launch.train --flagfile=launch/synthetic.flags
python -m launch.train --flagfile=launch/ml1m.flags --data_dir=DIR
TF_CONFIG=... python -m launch.train --flagfile=launch/ml1m.flags --distribution=multi_worker
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

from absl import flags

from launch import config as launch_config
from launch import steps
from tf_twostage import environment as environments
from tf_twostage.config import Config
from tf_twostage.errors import InputError
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.training.distribution import Job, Workers
from tf_twostage.workspace import Workspace

_UNKNOWN_TO_EVALUATION = ("export_dir", "keep", "overwrite")


def main() -> None:
  config = launch_config.config_from_flags()
  chief = Job.of(config).is_chief
  workdir = launch_config.work_directory(config) if chief else launch_config.work_path(config)
  export_dir = launch_config.export_directory(config)
  metrics, summary = run(config, workdir, export_dir, keep=flags.FLAGS.keep)
  print(summary)
  if not chief:
    return
  after = steps.command_line("evaluate", without=_UNKNOWN_TO_EVALUATION)
  if config.ratings_are_the_log:  # which cannot be evaluated off-policy
    after = steps.command_line("serve_check", f"--model={metrics['export']}", arguments=())
  print(f"Next: {after}")


def run(
  config: Config, workdir: pathlib.Path, export_dir: pathlib.Path, *, keep: int = 5
) -> tuple[dict[str, Any], str]:
  """Environment, training, export, report. With several workers, each of them calls this.

  Returns the metrics, empty unless this worker is the chief, and a summary to print.
  """
  start = time.perf_counter()
  model = TwoStageRecommender.from_config(config)
  job = Job.of(config)
  workers = job.join(config.generator.batch_size)
  with workers.together():
    check_same(config, workers)
    workspace = Workspace(workdir / "stages", builds=workers.is_chief, barrier=workers.wait)
    environment = environments.make(config, workspace)
    baselines = environment.baselines(workspace, config.slate_size, model.stage)
    with workspace.timed("generator"):
      model.fit(environment, workdir=workdir, workers=workers)
    result: tuple[dict[str, Any], str] = {}, f"{job.name}: the chief is done"
    if workers.is_chief:
      if "input_wait_share" in model.history:
        waited = float(model.history["input_wait_share"].mean())
        workspace.timings["generator"]["input_wait_share"] = waited
      with workspace.timed("export"):
        exported = model.export(export_dir, keep=keep)
      seconds = round(time.perf_counter() - start, 2)
      workspace.timings["total"] = {"seconds": seconds, "reused": False}
      result = model.report(workdir, baselines, workspace.timings, exported)
    workers.wait()
  return result


def check_same(config: Config, workers: Workers) -> None:
  """Raises: InputError: workers have different settings; at all workers."""
  settings: dict[str, Any] = {}
  for name, value in dataclasses.asdict(config).items():
    section = isinstance(value, dict) and name != "loss_options"
    settings |= {f"{name}.{n}": v for n, v in value.items()} if section else {name: value}
  if different := workers.differing(settings):
    raise InputError(
      f"workers have different settings of {', '.join(different)}; start all with the same flags"
    )


if __name__ == "__main__":
  launch_config.define_flags()
  launch_config.run_command(main)
