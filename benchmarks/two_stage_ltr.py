"""What training both stages on clicks with position bias is worth: NDCG@10 on true labels, paired.

  python -m benchmarks.two_stage_ltr --slates=200000 --logs=2
  python -m benchmarks.two_stage_ltr --step
  python -m benchmarks.two_stage_ltr --flagfile=launch/ml1m.flags --data_dir=ml-1m --logs=10

With `--slates`, logs of so many slates of the invented world of `make_slates`, whose relevance is
known: 60 users, 30 items, two policies that follow their idea of it closely. The propensity is that
of exposure, of both policies together; position-blind, that of being shown. Models are those of the
last epoch. The optimum is 100. `--step` compares processor time of a training step.

Otherwise every log has a logging policy, slates, clicks and a ranker of its own (`--slots`), for
the same labels. Test users are scored on all labels, for the last epoch and for the one that the
labels of validation users choose, which nobody has who only has a log. All variants of a log are
trained with the same seed, so that they are compared in pairs. A finished model is found in
`--workdir`, so the same command resumes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
from absl import flags

from launch import config as launch_config
from tf_twostage import environment as environments
from tf_twostage.config import Config, EncoderConfig, FitConfig, GeneratorConfig
from tf_twostage.data.log import BanditLog
from tf_twostage.data.sets import make_slates
from tf_twostage.environment import log_environment
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.training import loop
from tf_twostage.workspace import Workspace

import tensorflow as tf  # isort: skip

METRIC = "ndcg@10"
# Which stages learn, and whether propensities leave the examination of slots out.
VARIANTS = {
  "both stages": ("both", False),
  "generator alone": ("generator", False),
  "both stages, position-blind": ("both", True),
}


def teaching(train: str, settings: GeneratorConfig) -> GeneratorConfig:
  """Settings of both stages, for those that learn."""
  if train == "both":
    return dataclasses.replace(settings, train=train)
  return dataclasses.replace(settings, train=train, turn_epochs=1, ranker_rate=None)


def variant(config: Config, train: str, blind: bool, log: int) -> Config:
  """The settings of a variant on a log."""
  return dataclasses.replace(
    config,
    loss="two_stage_ltr",
    seed=log,
    generator=teaching(train, config.generator),
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


def invented(slates: int, log: int) -> dict[str, float]:
  """NDCG@10 of every variant on one log of an invented world, and of 2-IPS; in percent."""
  world = make_slates(60, 30, policies={"old": 2.0, "new": 2.0})
  slots = sum(s * p for s, p in zip(world.shares, world.logged_slots.values(), strict=True))
  place = {
    name: {key: at for at, key in enumerate(table[name])}
    for name, table in (("user_id", world.users), ("item_id", world.items))
  }
  frame = world.frame(slates, seed=log)
  pairs = tuple(frame[name].map(keys).to_numpy() for name, keys in place.items())
  frame["exposure"] = (slots @ world.examination)[pairs]
  frame["shown"] = np.minimum(slots.sum(axis=2), 1)[pairs]
  training = GeneratorConfig(train="both", epochs=8, batch_size=2048, l2=1e-6, ranker_rate=0.05)
  scores = {}
  for name, (train, blind) in {**VARIANTS, "2-IPS": ("generator", False)}.items():
    data = BanditLog.from_pandas(
      frame,
      user="user_id",
      item="item_id",
      reward="click",
      propensity="shown" if blind else "exposure",
      items=world.items,
      users=world.users,
    )
    model = TwoStageRecommender(
      "ips:policy=two_stage" if name == "2-IPS" else "two_stage_ltr",
      slate_size=15,
      training=teaching(train, training),
      encoder=EncoderConfig(id_width=64),
      ranker_training=FitConfig(epochs=2, batch_size=4096),
      seed=log,
    )
    with tempfile.TemporaryDirectory() as directory:
      environment = log_environment(model.config, data, None, Workspace(pathlib.Path(directory)))
      model.fit_rows(environment, environment.log)
    shown = model.recommend(world.users["user_id"].tolist(), k=10)["item"].map(place["item_id"])
    scores[name] = 100 * world.ndcg(shown.to_numpy().reshape(len(world.users), 10))
    print(log, name, scores[name], flush=True)
  return scores


def step_times(items: int = 3883, users: int = 6040, rows: int = 20_000) -> pd.DataFrame:
  """Processor milliseconds of a training step, medians of turns in one process, by slate size."""
  rng = np.random.default_rng(0)
  shown = np.concatenate([np.arange(items), rng.integers(items, size=rows - items)])
  columns = {"user": rng.integers(users, size=rows).astype(str), "item": shown.astype(str)}
  frame = pd.DataFrame(columns | {"p": 1 / items, "click": (rng.random(rows) < 0.3).astype(int)})
  log = BanditLog.from_pandas(frame, user="user", item="item", reward="click", propensity="p")
  made = {}
  with tempfile.TemporaryDirectory() as directory:
    for size in (10, 30):
      for loss, train in (("ips:policy=two_stage", "generator"), ("two_stage_ltr", "both")):
        model = TwoStageRecommender(loss, train=train, slate_size=size)
        workspace = Workspace(pathlib.Path(directory))
        environment = log_environment(model.config, log, None, workspace)
        fitted = model.fresh_generator(environment)
        fitted.compile(optimizer=loop.make_optimizer(model.config.generator))
        fitted.optimizer.build(fitted.trainable_variables)
        learned = environment.log.positives()
        batches = iter(learned.batches(environment.tables.users, batch_size=128, seed=0))
        step = tf.function(fitted.train_step)
        step(next(batches))  # traced
        made[size, loss] = fitted.optimizer, len(learned) // 128, step, batches
  times: dict[tuple[int, str], list[float]] = {key: [] for key in made}
  for _ in range(9):
    for key, (optimizer, turn_steps, step, batches) in made.items():
      taken = [next(batches) for _ in range(6)]
      start = time.process_time()
      for at, batch in enumerate(taken):  # each stage learns in half of them
        optimizer.iterations.assign(at % 2 * turn_steps)
        step(batch)
      times[key].append(1000 * (time.process_time() - start) / len(taken))
  return pd.Series({key: np.median(values) for key, values in times.items()}).unstack()


def main() -> None:
  if flags.FLAGS.step:
    print(step_times().round(1).to_string())
    return
  numbers = range(flags.FLAGS.first_log, flags.FLAGS.first_log + flags.FLAGS.logs)
  if flags.FLAGS.slates:
    found = pd.DataFrame({log: invented(flags.FLAGS.slates, log) for log in numbers}).T
    print(paired(found).round(3).to_string())
    return
  config = launch_config.config_from_flags()
  workdir = launch_config.work_directory(config)
  workspace = Workspace(workdir / "stages")
  tables: dict[str, dict[int, dict[str, float]]] = {}
  for log in numbers:
    for name, (train, blind) in VARIANTS.items():
      tf.keras.backend.clear_session()
      own = variant(config, train, blind, log)
      environment = environments.make(own, workspace)
      model = TwoStageRecommender.from_config(own).fit(environment, workdir=workdir, progress=False)
      epochs = model.epochs
      for which, epoch in (("last", epochs[-1]), ("chosen", loop.best_epoch(epochs))):
        for stage, score in epoch["scores"]["test"].items():
          table = tables.setdefault(f"{stage}, {which} epoch", {})
          table.setdefault(log, {})[name] = 100 * score[METRIC]
    for name, table in tables.items():
      print(name, paired(pd.DataFrame(table).T).round(3).to_string(), sep="\n", flush=True)


if __name__ == "__main__":
  launch_config.define_flags(export=False)
  flags.DEFINE_integer("logs", 10, "logs that are drawn", lower_bound=1)
  flags.DEFINE_bool("step", False, "time a training step instead")
  flags.DEFINE_integer("slates", 0, "slates of a log of an invented world", lower_bound=0)
  flags.DEFINE_integer("first_log", 0, "number of the first log", lower_bound=0)
  launch_config.run_command(main)
