"""Time and memory of a training step against a support, by the size of the catalogue.

  python -m benchmarks.large_catalogue
  python -m benchmarks.large_catalogue --items 10000 1000000 --objectives exact --turns 20
  python -m benchmarks.large_catalogue --full          without a support, where memory allows

A step is Keras's own: input pipeline, towers, loss, gradients, Adagrad. Catalogues take turns
within one process, so that a busy machine slows all of them alike; a ratio is the median of the
ratios within a turn. Memory is the peak of a process of its own that trains the largest of them,
less what it had with a catalogue as small as the support. It needs Linux.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from benchmarks import measuring
from tf_twostage import losses  # before tensorflow: selects Keras 2
from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id, Schema
from tf_twostage.evaluation.full_information import vector_scorer
from tf_twostage.models.encoders import EncodedTables, FeatureLookup, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.support import SampledSupport, most_probable
from tf_twostage.training.loop import make_optimizer

import tensorflow as tf  # isort: skip

OBJECTIVES = {
  "cross_entropy": ("cross_entropy", {}),
  "ips": ("ips", {}),
  "exact": ("two_stage_ips", {"sampling": "exact"}),
  "systematic": ("two_stage_ips", {"sampling": "systematic"}),
  "categorical": ("two_stage_ips", {"sampling": "categorical"}),
}
USERS, ROWS, STEPS = 10_000, 100_000, 3


class Contender:
  """A generator of `items` items under training."""

  def __init__(self, objective: str, items: int, arguments: argparse.Namespace):
    name, options = OBJECTIVES[objective]
    rng = np.random.default_rng(0)
    schema = Schema(
      user=(Id("user", tuple(map(str, range(USERS)))),),
      item=(Id("item", tuple(map(str, range(items)))),),
    )
    codes = {"user": tf.range(1, USERS + 1), "item": tf.range(1, items + 1)}
    tables = EncodedTables(
      schema, {"user": codes["user"]}, {"item": codes["item"]}, FeatureLookup(())
    )
    log = LogRows(
      user_index=rng.integers(USERS, size=ROWS).astype(np.int32),
      action=rng.integers(items, size=ROWS).astype(np.int32),
      propensity=np.full(ROWS, 1 / items, np.float32),
      reward=np.ones(ROWS, np.float32),
    )
    support = None
    if not arguments.full:
      support = SampledSupport(
        losses.DRAWS[arguments.draws](np.bincount(log.action, minlength=items)),
        num_items=items,
        size=arguments.support,
        seed=0,
        hard_candidates=arguments.hard,
        hard_refresh_steps=10**9,  # at the first step; timed by itself
      )
    self.towers = TwoTower(
      tables,
      EncoderConfig(id_width=arguments.width, embedding_stddev=0.1),
      l2=1e-4,
      sparse_l2=not arguments.full,
    )
    ranker = vector_scorer(
      rng.normal(size=(USERS, arguments.width)).astype(np.float32),
      rng.standard_normal(size=(items, arguments.width), dtype=np.float32),
    )
    model = CandidateGenerator(self.towers, losses.get(name, **options), ranker, support)
    model.compile(optimizer=make_optimizer(FitConfig()))
    self.items, self._hard = items, arguments.hard
    self._step = model.make_train_function()
    self._batches = iter(log.batches(tables.users, batch_size=arguments.batch, seed=0))
    self._users = self.towers.query({"user": codes["user"][:128]})
    self._refresh = tf.function(lambda: most_probable(self._users, self.towers, items, self._hard))
    weights = sum(np.prod(v.shape) for v in self.towers.trainable_variables)
    self.megabytes = 2 * 4 * weights / 2**20  # and the slots of Adagrad

  def steps(self) -> tf.Tensor:
    """Takes STEPS steps; returns the last loss."""
    for _ in range(STEPS):
      logs = self._step(self._batches)
    return logs["total_loss"]

  def refresh(self) -> tf.Tensor:
    """Chooses hard candidates."""
    return self._refresh()


def step_times(arguments: argparse.Namespace) -> None:
  print(f"{'':14}" + "".join(f"{n:>12,}" for n in arguments.items) + "   ratio of last to first")
  for objective in arguments.objectives:
    contenders = [Contender(objective, items, arguments) for items in arguments.items]
    turns = _seconds({c.items: c.steps for c in contenders}, arguments.turns) / STEPS
    cells = "".join(f"{1000 * t:9.1f} ms" for t in np.median(turns, axis=1))
    ratios = turns[-1] / turns[0]
    low, high = np.quantile(ratios, [0.25, 0.75])
    print(f"{objective:14}{cells}   {np.median(ratios):.2f} (half of them {low:.2f} to {high:.2f})")
  if arguments.hard and not arguments.full:
    times = np.median(_seconds({c.items: c.refresh for c in contenders}, 3), axis=1)
    print(f"{'hard refresh':14}" + "".join(f"{1000 * t:9.1f} ms" for t in times))


def _seconds(runs: Mapping[int, Callable[[], tf.Tensor]], turns: int) -> np.ndarray:
  """Seconds of each run in each turn, [runs, turns]."""
  named = {str(items): run for items, run in runs.items()}
  return np.array([s.clock for s in measuring.take_turns(named, turns, warm_up=1).values()])


def memory(objective: str, arguments: argparse.Namespace) -> tuple[float, float]:
  """Peak memory beyond that of a small catalogue, and memory of tables and slots; in MB."""
  Contender(objective, arguments.support, arguments).steps().numpy()
  built = []

  def build_and_train() -> None:
    contender = Contender(objective, max(arguments.items), arguments)
    for _ in range(3):
      contender.steps().numpy()
    if arguments.hard:
      contender.refresh().numpy()
    built.append(contender)

  return measuring.peak_growth(build_and_train), built[0].megabytes


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6])
  parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
  parser.add_argument("--batch", type=int, default=1024)
  parser.add_argument("--support", type=int, default=2048)
  parser.add_argument("--draws", default="uniform", choices=losses.DRAWS)
  parser.add_argument("--hard", type=int, default=128)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--turns", type=int, default=9)
  parser.add_argument("--full", action="store_true", help="the whole catalogue, dense L2")
  arguments = parser.parse_args()
  step_times(arguments)
  for objective in arguments.objectives:
    more, owned = measuring.in_own_process(memory, objective, arguments)
    print(
      f"{objective:14}{max(arguments.items):>12,} items: {more:7.0f} MB at the peak, tables and"
      f" slots {owned:6.0f}: {more / owned:5.2f} times"
    )


if __name__ == "__main__":
  main()
