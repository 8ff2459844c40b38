"""What a support makes of a trained generator's probabilities, weights and loss.

  python -m benchmarks.support_bias runs/ml1m/generators/two_stage_ips-seed0-...

The towers are those of the best epoch; batches are of the rows that they learned from. Every figure
is relative to the whole catalogue, for the same rows: bias is of the mean over rows and draws, and
noise the mean over rows of the standard deviation over draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage import environment as environments
from tf_twostage import losses
from tf_twostage.experiment import stored_config
from tf_twostage.models.support import most_probable
from tf_twostage.recommender import TwoStageRecommender, rows_to_learn
from tf_twostage.workspace import Workspace

import tensorflow as tf  # isort: skip

OBJECTIVES = {
  "cross_entropy": "cross_entropy",
  "ips": "ips",
  "2-IPS exact": "two_stage_ips:sampling=exact",
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("generator", type=pathlib.Path, help="directory of a finished generator")
  parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
  parser.add_argument("--hard", type=int, nargs="+", default=[0, 64])
  parser.add_argument("--rows", type=int, default=128)
  parser.add_argument("--draws", type=int, default=50)
  arguments = parser.parse_args()
  config = stored_config(arguments.generator / "config.json")
  workdir = arguments.generator.parent.parent
  environment = environments.make(config, Workspace(workdir / "stages"))
  model = TwoStageRecommender.from_config(config)
  assert model.restore(environment, workdir)
  towers = model.towers
  log = rows_to_learn(config, environment.log)
  num_items = environment.tables.schema.num_items
  batch = next(iter(log.batches(environment.tables.users, batch_size=arguments.rows, seed=0)))
  query = towers.query(batch["user"])
  objectives = {
    name: TwoStageRecommender.from_config(
      dataclasses.replace(config, loss=loss, loss_options={})
    ).objective()
    for name, loss in OBJECTIVES.items()
  }
  importance = objectives["ips"].importance  # normalised weights have a mean of 1 anyway
  columns = batch["propensity"], batch["reward"]

  @tf.function
  def evaluated(items, positions, log_q):
    logits = tf.matmul(query, towers.candidates(items), transpose_b=True)
    ranker_logits = environment.ranker_logits(batch, items)
    log_p = -losses.CrossEntropy()(
      logits, positions, columns[0], tf.ones_like(columns[1]), log_q=log_q
    )
    terms = [
      o.terms(logits, positions, *columns, ranker_logits, log_q) for o in objectives.values()
    ]
    return (
      tf.exp(log_p),
      tf.clip_by_value(terms[1].ratio, importance.floor, importance.cap),
      terms[2].ranker_probability,
      [t.loss for t in terms],
    )

  whole = evaluated(tf.range(num_items), batch["action"], tf.zeros([num_items]))
  p, weights, share, loss = tf.nest.map_structure(np.asarray, whole)
  counts = np.bincount(log.action, minlength=num_items)
  heads = ["p bias", "p noise", "weight bias", "share bias", *(f"{n} bias" for n in objectives)]
  print(f"{'':32}" + "".join(f"{head:>20}" for head in heads))
  for size in arguments.sizes:
    for kind, hard in ((k, h) for k in losses.DRAWS for h in arguments.hard):
      if size <= arguments.rows + hard:
        continue
      draws = losses.DRAWS[kind](counts)
      chosen = most_probable(query, towers, num_items, hard) if hard else None
      runs = []
      for seed in range(arguments.draws):
        support = losses.sample_support(
          batch["action"], draws, size=size, seed=[seed, 0], hard=chosen
        )
        runs.append(evaluated(support.items, support.positions, support.log_q))
      p_, weights_, share_, *losses_ = (
        np.stack(part) for part in zip(*((*r[:3], *r[3]) for r in runs), strict=True)
      )
      biases = [
        (p_ / p).mean() - 1,
        (p_ / p).std(axis=0).mean(),
        weights_.mean() / weights.mean() - 1,
      ]
      biases += [share_.mean() / share.mean() - 1]
      biases += [found.mean() / full.mean() - 1 for found, full in zip(losses_, loss, strict=True)]
      name = f"{size} {kind}" + (f", {hard} hard" if hard else "")
      print(f"{name:32}" + "".join(f"{100 * b:18.1f} %" for b in biases), flush=True)


if __name__ == "__main__":
  main()
