"""What training both stages on clicks with position bias is worth: NDCG@10 on true labels, paired.

  python -m benchmarks.two_stage_ltr --flagfile=launch/ml1m.flags --data_dir=ml-1m --logs=10

Every log has a logging policy, slates, clicks and a ranker of its own (`--slots`), for the same
labels. Test users are scored on all labels; validation users choose the epoch, as in
`launch.experiment`. All variants of a log are trained with the same seed, so that they are compared
in pairs. A finished model is found in `--workdir`, so the same command resumes.
"""

from __future__ import annotations

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pandas as pd
from absl import flags

from launch import config as launch_config
from tf_twostage import environment as environments
from tf_twostage.config import Config
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.training import loop
from tf_twostage.workspace import Workspace

import tensorflow as tf  # isort: skip

METRIC = "ndcg@10"
# Which stages learn, and whether propensities leave the examination of slots out.
VARIANTS = {
  "both stages": ("both", False),
  "generator, then ranker": ("ranker", False),
  "generator alone": ("generator", False),
  "both stages, position-blind": ("both", True),
}


def variant(config: Config, train: str, blind: bool, log: int) -> Config:
  """The settings of a variant on a log."""
  return dataclasses.replace(
    config,
    loss="two_stage_ltr",
    seed=log,
    generator=dataclasses.replace(config.generator, train=train),
    simulation=dataclasses.replace(config.simulation, log_number=log, position_blind=blind),
  )


def paired(scores: pd.DataFrame) -> pd.DataFrame:
  """Mean and standard error over logs of each variant, and of what the first has more.

  Args:
    scores: a row for each log, a column for each variant.
  """
  found = {}
  for name in scores:
    more = scores.iloc[:, 0] - scores[name]
    found[name] = {
      "mean": scores[name].mean(),
      "standard error": scores[name].sem(),
      "less than the first": more.mean(),
      "its standard error": more.sem(),
      "logs": len(scores),
    }
  return pd.DataFrame(found).T


def main() -> None:
  config = launch_config.config_from_flags()
  workdir = launch_config.work_directory(config)
  workspace = Workspace(workdir / "stages")
  rows: dict[str, dict[int, float]] = {
    f"{name}, {stage}": {} for stage in ("two_stage", "one_stage") for name in VARIANTS
  }
  rows |= {"popularity, two_stage": {}}
  for log in range(flags.FLAGS.first_log, flags.FLAGS.first_log + flags.FLAGS.logs):
    for name, (train, blind) in VARIANTS.items():
      tf.keras.backend.clear_session()
      own = variant(config, train, blind, log)
      environment = environments.make(own, workspace)
      model = TwoStageRecommender.from_config(own).fit(environment, workdir=workdir, progress=False)
      best = loop.best_epoch(model.epochs)
      for stage in ("two_stage", "one_stage"):
        rows[f"{name}, {stage}"][log] = 100 * best["scores"]["test"][stage][METRIC]
      print(log, name, best["epoch"], best["scores"]["test"], flush=True)
    popular = environment.baselines(workspace, own.slate_size)["popularity"]
    rows["popularity, two_stage"][log] = 100 * popular["test"]["two_stage"][METRIC]
    print(paired(pd.DataFrame(rows)).round(3).to_string(), flush=True)


if __name__ == "__main__":
  launch_config.define_flags(export=False)
  flags.DEFINE_integer("logs", 10, "logs that are drawn", lower_bound=1)
  flags.DEFINE_integer("first_log", 0, "number of the first log", lower_bound=0)
  launch_config.run_command(main)
