"""What generators learned on distinct candidates, and how near such slates are to Plackett-Luce.

python -m benchmarks.distinct_policy --flagfile=launch/ml1m.flags --data_dir=DIR \\
  --environment=ENVIRONMENT --epochs=5 --workdir=WORKDIR --losses=ips:policy=distinct,...
python -m benchmarks.distinct_policy --slates=100000

The first reads models that launch.experiment finished with the same flags (seed 0), and compares
the value of their policy by the log that trained them with the true one, on test users, and says
what its candidates are. The second prints the total variation between both policies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import tensorflow as tf
from absl import flags

from launch import config as launch_config
from tf_twostage import environment as environments
from tf_twostage.distinct import DistinctPolicy, distinct_probabilities
from tf_twostage.environment import Environment
from tf_twostage.models.two_stage import rerank, retrieve
from tf_twostage.recommender import TwoStageRecommender
from tf_twostage.workspace import Workspace

ROWS = 256  # at a time
SOME = 2000  # rows of the log, and test users


def chunked(function: Callable[[np.ndarray], tuple], rows: np.ndarray) -> list[np.ndarray]:
  parts = [function(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
  return [np.concatenate(values) for values in zip(*parts, strict=True)]


def learned(model: TwoStageRecommender, environment: Environment) -> dict[str, float]:
  """Values by the log and by the labels, and what the candidates are."""
  log, evaluator, size = environment.log, environment.evaluator, model.slate_size
  users = {name: np.asarray(codes) for name, codes in environment.tables.users.items()}

  def scores(user_index: np.ndarray, context: dict) -> tuple[tf.Tensor, tf.Tensor]:
    user = {name: codes[user_index] for name, codes in users.items()}
    batch = {"user": user, "context": context, "user_index": user_index}
    return model.towers(user), environment.ranker_logits(batch)

  def of_log(at: np.ndarray) -> tuple:
    rows = log.select(at)
    shown = DistinctPolicy(*scores(rows.user_index, rows.context), size).log_prob(rows.action)
    return np.exp(shown) / rows.propensity * rows.reward, rows.reward

  def of_users(at: np.ndarray) -> tuple:
    context = {name: np.asarray(values)[at] for name, values in evaluator.inputs["context"].items()}
    logits, ranked = scores(np.asarray(evaluator.inputs["user_index"])[at], context)
    labels = evaluator.relevance[at].astype(np.float32)
    value = tf.reduce_sum(DistinctPolicy(logits, ranked, size).probabilities() * labels, 1)
    slate, _ = retrieve(logits, None, size)
    of_slate = tf.gather(ranked, slate, batch_dims=1)
    place = tf.reduce_mean(tf.cast(ranked[:, None] < of_slate[..., None], tf.float32), 2)
    ordered, _ = rerank(slate, of_slate, size)
    relevant = tf.gather(labels, ordered, batch_dims=1).numpy()
    return value.numpy(), tf.reduce_mean(place, 1), relevant[:, :10], relevant[:, 10:]

  rng = np.random.default_rng(0)
  weighted, _ = chunked(of_log, np.sort(rng.permutation(len(log))[:SOME]))
  test = np.arange(evaluator.num_validation, len(evaluator.relevance))[:SOME]
  value, place, first, rest = chunked(of_users, test)
  return {
    "value by the log": 100 * float(weighted.mean()),
    "true value": 100 * float(value.mean()),
    "ranker's ten": 100 * float(first.mean()),
    "other candidates": 100 * float(rest.mean()),
    "ranked above": 100 * float(place.mean()),
  }


def total_variation(items: int, slate_size: int, spread: float, slates: int) -> tuple[float, float]:
  """Between the policies, and that of the noise of the sampled slates alone."""
  rng = np.random.default_rng(0)
  logits, ranker_logits = rng.normal(scale=spread, size=(2, items)).astype(np.float32)
  halves = np.zeros((2, items))
  for part in range(slates // ROWS):
    clocks = logits - np.log(rng.exponential(size=(ROWS, items)))
    drawn = tf.math.top_k(clocks, slate_size).indices
    share = tf.nn.softmax(tf.gather(ranker_logits, drawn)).numpy()
    halves[part % 2] += np.bincount(drawn.numpy().ravel(), share.ravel(), minlength=items)
  halves /= halves.sum(axis=1, keepdims=True)
  shown = distinct_probabilities(logits[None], ranker_logits[None], slate_size).numpy()[0]
  return np.abs(shown - halves.mean(axis=0)).sum() / 2, np.abs(halves[0] - halves[1]).sum() / 4


def main() -> None:
  if slates := flags.FLAGS.slates:
    for items, size in ((50, 8), (3883, 30)):
      found, noise = total_variation(items, size, 2.0, slates)
      print(f"K = {size} of {items}: {found:.4f}, noise of the slates {noise:.4f}")
    return
  config = launch_config.config_from_flags()
  workdir = launch_config.work_path(config)
  environment = environments.make(config, Workspace(workdir / "stages"))
  rows = {}
  for label, own, _ in launch_config.plan_variants(config, flags.FLAGS.losses, ""):
    model = TwoStageRecommender.from_config(dataclasses.replace(own, seed=0))
    if model.restore(environment, workdir):
      rows[label] = learned(model, environment)
  print(pd.DataFrame(rows).T.round(1).to_string())


if __name__ == "__main__":
  launch_config.define_flags(export=False, overwrite=False)
  flags.DEFINE_list("losses", ["ips:policy=distinct"], "as for launch.experiment")
  flags.DEFINE_integer("slates", 0, "sampled slates; prints total variation", lower_bound=0)
  launch_config.run_command(main)
