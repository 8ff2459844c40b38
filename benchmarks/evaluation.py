"""Throughput of the evaluations that training and reports run, against the size of the catalogue.

  python -m benchmarks.evaluation --output DIR
  python -m benchmarks.evaluation --items 1000 100000 --output DIR

Full information (`evaluation.full_information`, users a second), held-out rows
(`evaluation.held_out`) and the reduction of a policy to rows (`evaluation.evaluation_log`, rows a
second; every row of a user of its own, so that no answer serves twice). Contenders take turns;
beside them stand a bare product with
its top-k, and the floor of the operations and bytes that `work` counts at this machine's peaks.
DIR/evaluation.csv and, with matplotlib, DIR/evaluation.png are written.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import policies  # before tensorflow: selects Keras 2
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import full_information
from tf_twostage.evaluation.evaluation_log import EvaluationLog, reduce_to_rows
from tf_twostage.evaluation.evaluator import Scorer
from tf_twostage.evaluation.held_out import HeldOutEvaluator

import tensorflow as tf  # isort: skip

from benchmarks import measuring
from benchmarks.measuring import Work

WARM_UP = 2
WIDTH = 32
SLATE = 30
MOST = 2_048  # users, or rows, of an evaluation
PAIRS = 2**25  # users x items above which there are fewer
FLOAT = 4  # bytes


class Contender(NamedTuple):
  """An evaluation of all users, and what it cannot do without for each.

  Attributes:
    run: evaluates.
    work: of a user.
  """

  run: Callable[[], Any]
  work: Work


def work(items: int, products: int, exponentials: int, arrays: int, masks: int = 0) -> Work:
  """Of one user: products with the catalogue, and what of its length is written and read.

  Args:
    items: N.
    products: how many; each makes an array [N].
    exponentials: how many times N.
    arrays: [N] float32 that are written once and read once, those of the products among them.
    masks: [N] bool that are read.
  """
  return Work(
    operations=2.0 * products * items * WIDTH,
    exponentials=float(exponentials * items),
    bytes=items * (2.0 * FLOAT * arrays + masks),
  )


def contenders(items: int, users: int) -> dict[str, Contender]:
  """By name: evaluations of as many users, or of as many rows."""
  rng = np.random.default_rng(0)

  def vectors(rows):
    return rng.normal(size=(rows, WIDTH), scale=WIDTH**-0.5).astype(np.float32)

  def scorer() -> Scorer:
    return full_information.vector_scorer(vectors(users), vectors(items))

  generator, ranker, rewards = scorer(), scorer(), scorer()

  def reward_model(batch: Mapping[str, Any]) -> tf.Tensor:
    return tf.sigmoid(rewards(batch))

  index = np.arange(users, dtype=np.int32)
  inputs = {"user": {"user_id": index}, "context": {}, "user_index": index}
  everyone = full_information.FullInformationEvaluator(
    inputs=inputs,
    relevance=rng.random((users, items), np.float32) < 0.01,
    excluded=rng.random((users, items), np.float32) < 0.01,
    num_validation=users // 2,
  )
  log = LogRows(
    user_index=index,
    action=rng.integers(items, size=users, dtype=np.int32),
    propensity=np.full(users, 1 / items, np.float32),
    reward=rng.integers(2, size=users).astype(np.float32),
  )
  halves = {"validation": slice(0, users // 2), "test": slice(users // 2, None)}
  held_out = HeldOutEvaluator(
    logs={
      split: EvaluationLog(log.select(half), num_items=items, stage="")
      for split, half in halves.items()
    },
    users=inputs["user"],
    reward_model=reward_model,
  )
  evaluation = EvaluationLog(log, num_items=items, stage="")

  def by_row(function):
    return lambda rows: function({"user_index": tf.constant(index[rows])}).numpy()

  def softmax(batch):
    return policies.SoftmaxPolicy(generator(batch)).probabilities()

  def two_stage(batch):
    return policies.two_stage_probabilities(generator(batch), ranker(batch), SLATE)

  def look(probabilities):
    policy, rewards = by_row(probabilities), by_row(reward_model)
    return lambda: reduce_to_rows(evaluation, lambda rows: ([policy(rows)], rewards(rows)))

  # Who re-orders a slate must score 30 items of it, which counts as nothing.
  top = work(items, products=1, exponentials=0, arrays=1, masks=1)
  return {
    "product + top-k": Contender(bare(vectors(users), vectors(items)), top),
    "full information, users": Contender(everyone.evaluation(generator, ranker, SLATE), top),
    # Logits of both stages and expected rewards.
    "held-out rows": Contender(
      held_out.evaluation(generator, ranker, SLATE),
      work(items, products=3, exponentials=2, arrays=3),
    ),
    # And probabilities, which leave TensorFlow as rewards do.
    "estimates of a policy, rows": Contender(
      look(softmax), work(items, products=2, exponentials=2, arrays=3)
    ),
    "estimates of two stages, rows": Contender(
      look(two_stage), work(items, products=3, exponentials=2, arrays=4)
    ),
  }


def bare(users: np.ndarray, items: np.ndarray) -> Callable[[], list[Any]]:
  """Every user's product with the catalogue and its top-k, in chunks as evaluations have them."""
  size = max(1, min(1_024, 2**23 // len(items)))
  catalogue = tf.constant(items)
  top = tf.function(
    lambda some: tf.math.top_k(tf.matmul(some, catalogue, transpose_b=True), SLATE)[1],
    input_signature=[tf.TensorSpec([None, WIDTH])],
    autograph=False,
  )
  chunks = [tf.constant(users[start : start + size]) for start in range(0, len(users), size)]
  return lambda: [top(chunk) for chunk in chunks]


def measure(items: int, turns: int, seconds: float) -> list[dict[str, Any]]:
  """A row for each contender: items, contender, users; users a second by the clock and of a
  processor, medians over turns; the most that the floor allows of a processor, what it is bound by,
  and how many times the floor the evaluation takes."""
  users = max(2, min(MOST, PAIRS // items))
  runs = contenders(items, users)
  chunk = max(1, min(users, 2**22 // items))
  peaks, peak_work = measuring.peak_runs(moved=FLOAT * chunk * items)
  times = measuring.take_turns(
    {**peaks, **{name: contender.run for name, contender in runs.items()}},
    turns,
    warm_up=WARM_UP,
    at_most=seconds,
  )
  median = {name: np.median(of_run, axis=1) for name, of_run in times.items()}
  processor = measuring.peaks({name: median[name][1] for name in peaks}, peak_work)
  rows = []
  for name, contender in runs.items():
    floor, bound = processor.floor(contender.work)
    by_clock, by_processor = users / median[name]
    rows.append(
      {
        "items": items,
        "contender": name,
        "users": users,
        "a_second": by_clock,
        "a_processor_second": by_processor,
        "at_most": 1 / floor,
        "bound_by": bound,
        "times_floor": 1 / floor / by_processor,
      }
    )
  return rows


def draw(frame: pd.DataFrame, path: pathlib.Path) -> None:
  """Users or rows a second by items."""
  groups = dict(list(frame.groupby("contender", sort=False)))
  floors = {
    "floor, full information": "full information, users",
    "floor, held-out rows": "held-out rows",
  }
  panel = measuring.Panel(
    "throughput of evaluation",
    "items",
    "users or rows a second of a processor",
    {name: (group["items"], group["a_processor_second"]) for name, group in groups.items()},
    {floor: (groups[name]["items"], groups[name]["at_most"]) for floor, name in floors.items()},
  )
  measuring.picture(path, [panel])


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
  parser.add_argument("--turns", type=int, default=15)
  parser.add_argument("--seconds", type=float, default=120, help="of a size: then no new turn")
  parser.add_argument("--output", type=pathlib.Path, help="directory of the table and the picture")
  args = parser.parse_args(arguments)
  rows = [row for items in sorted(args.items) for row in measure(items, args.turns, args.seconds)]
  frame = pd.DataFrame(rows)
  print(frame.to_string(index=False, float_format=lambda number: f"{number:.3g}"))
  if args.output:
    args.output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.output / "evaluation.csv", index=False, float_format="%.6g")
    draw(frame, args.output / "evaluation.png")


if __name__ == "__main__":
  main()
