"""Latency of an export, relative to a bare matrix product with top-k, and sums of propensities.

  python -m benchmarks.serving
  python -m benchmarks.serving --items 3883 1000000 --width 32
  python -m benchmarks.serving --model saved_models/ml1m
  python -m benchmarks.serving --items 1000 10000 100000 1000000 --width 32 --output DIR

Without --model the export is made here, of an untrained pair with MovieLens-like features. Calls
are made in this process through the loaded SavedModel. Contenders take turns, so that a busy
machine slows all of them alike; a ratio is the median of the ratios within a turn. Processor time,
of all threads, says beside the clock of a busy machine what a call costs by itself. The floor is
what reading the item vectors takes at least, and the product with them (`work`).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import serving  # before tensorflow: selects Keras 2
from tf_twostage.config import EncoderConfig
from tf_twostage.data.schema import Categorical, Id, Numeric, Schema
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.serving.exporting import latest

import tensorflow as tf  # isort: skip

from benchmarks import measuring

SLATE = 30
K = 10
BARE = "matrix product + top-k"
USERS = 1000
WARM_UP = 10
ROWS_PER_CHUNK = 512
SIZES = {"gender": 2, "age": 7, "occupation": 21, "zip_code": 500}


def untrained(items: int, width: int) -> serving.ServableRecommender:
  """A pair whose item vectors are `width` wide: half of it the id, half two features."""
  rng = np.random.default_rng(0)
  tf.keras.utils.set_random_seed(0)

  def categorical(name, size, rows):
    return Categorical(name, tuple(map(str, range(size)))), rng.integers(size, size=rows).astype(
      str
    )

  users = {name: categorical(name, size, USERS) for name, size in SIZES.items()}
  things = {
    name: categorical(name, size, items) for name, size in {"year": 90, "genre": 18}.items()
  }
  user_ids, item_ids = (np.arange(rows).astype(str) for rows in (USERS, items))
  schema = Schema(
    user=(Id("user_id", tuple(user_ids)), *(f for f, _ in users.values())),
    item=(Id("item_id", tuple(item_ids)), *(f for f, _ in things.values())),
    context=(Numeric("timestamp"),),
  )
  tables = EncodedTables.encode(
    schema,
    {"user_id": user_ids, **{name: values for name, (_, values) in users.items()}},
    {"item_id": item_ids, **{name: values for name, (_, values) in things.items()}},
  )
  encoder = EncoderConfig(id_width=width // 2, feature_width=width // 4)
  towers = [TwoTower(tables, encoder, l2=0.0, use_context=context) for context in (False, True)]
  titles = np.char.add("title of ", item_ids)
  return serving.ServableRecommender(schema, towers[0], TowerRanker(towers[1]), titles, SLATE)


def request(specs, rows: int, excluded: int) -> dict[str, tf.Tensor]:
  """Users of an export of this module; values that others do not know fall back."""
  given = {
    "exclude": np.arange(excluded).astype(str)[None].repeat(rows, 0),
    "k": np.full(rows, K, np.int32),
    "temperature": np.ones(rows, np.float32),
    "seed": np.arange(rows),
    "timestamp": np.zeros(rows),
  }
  return {
    name: tf.constant(given.get(name, np.arange(rows).astype(str).astype(object))) for name in specs
  }


def bare(items: int, width: int, rows: int):
  """A product with the catalogue and its top-k, in the faster of the two layouts."""
  rng = np.random.default_rng(0)
  vectors = tf.Variable(rng.normal(size=(width, items)).astype(np.float32))
  queries = tf.constant(rng.normal(size=(rows, width)).astype(np.float32))
  run = tf.function(lambda: tf.math.top_k(tf.matmul(queries, vectors), SLATE), autograph=False)
  return lambda: list(run())


def work(name: str, items: int, width: int, rows: int) -> measuring.Work:
  """What a call cannot do without: to read the item vectors and multiply them with the users'; who
  samples needs those of both stages, and an exponential of each item."""
  stages, numbers = (2, items * rows) if name == "sample" else (1, 0)
  return measuring.Work(2.0 * stages * rows * items * width, numbers, 4.0 * stages * items * width)


def measure(signatures, items: int, width: int, args) -> list[dict[str, Any]]:
  """Prints the times of calls, and returns them: a row for each number of users and contender."""
  table = []
  for rows in args.rows:
    contenders = {BARE: bare(items, width, rows)}
    for name in ("recommend", "retrieve", "sample"):
      for excluded in args.excluded:
        run = signatures[name]
        inputs = request(run.structured_input_signature[1], rows, excluded)
        contenders[f"{name}, {excluded} excluded"] = lambda run=run, inputs=inputs: run(**inputs)
    peak_runs, peak_work = measuring.peak_runs(moved=4 * items * width)
    peak_times = measuring.take_turns(peak_runs, 10, warm_up=WARM_UP)
    by_clock = {name: np.median(seconds.clock) for name, seconds in peak_times.items()}
    peaks = measuring.peaks(by_clock, peak_work)
    times = measuring.take_turns(contenders, args.turns, warm_up=WARM_UP)
    reference = times[BARE]
    print(f"{items:,} items of width {width}, {rows} users")
    print(
      f"  {'ms':38s} {'p50':>8s} {'p99':>8s} {'p99 cpu':>8s} {'ratio':>8s} {'of cpu':>8s}"
      f" {'floor':>8s}"
    )
    for name, (seconds, processor) in times.items():
      p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
      own, ratio = np.percentile(processor, 99) * 1e3, np.median(seconds / reference.clock)
      of_processor = np.median(processor / reference.processor)
      floor = 1e3 * peaks.floor(work(name.split(",")[0], items, width, rows))[0]
      print(
        f"  {name:38s} {p50:8.2f} {p99:8.2f} {own:8.2f} {ratio:8.2f} {of_processor:8.2f}"
        f" {floor:8.3f}"
      )
      table.append(
        {
          "items": items,
          "width": width,
          "users": rows,
          "call": name,
          "p50_ms": p50,
          "p99_ms": p99,
          "p99_processor_ms": own,
          "ratio": ratio,
          "processor_ratio": of_processor,
          "floor_ms": floor,
        }
      )
  return table


def draw(frame: pd.DataFrame, path: pathlib.Path) -> None:
  """Latency by catalogue size, the bare product beside it; a panel for each number of users."""

  def panel(users: int, rows: pd.DataFrame) -> measuring.Panel:
    calls = dict(list(rows.groupby("call", sort=False)))
    return measuring.Panel(
      f"median latency of a call for {users} user{'s' if users > 1 else ''}",
      "items",
      "ms",
      {name: (of_call["items"], of_call["p50_ms"]) for name, of_call in calls.items()},
      {"floor": (calls[BARE]["items"], calls[BARE]["floor_ms"])},
    )

  measuring.picture(path, [panel(*group) for group in frame.groupby("users", sort=False)])


def propensity_sums(signatures, users: int) -> np.ndarray:
  """Of each user the sum over the catalogue of the propensities that `sample` reports, [users].

  The scores come from `retrieve` and `rank`, the propensities from the policy that `sample` uses.
  """
  sums = np.empty(users)
  everything = tf.constant([2**30])
  for user in range(users):
    inputs = request(signatures["retrieve"].structured_input_signature[1], users, 1)
    one = {name: value[user : user + 1] for name, value in inputs.items()} | {"k": everything}
    retrieved = signatures["retrieve"](**one)
    ids = retrieved["item_id"]
    inputs = request(signatures["rank"].structured_input_signature[1], users, 0)
    one = {name: value[user : user + 1] for name, value in inputs.items()} | {"candidates": ids}
    ranked = signatures["rank"](**one)
    place = {item: i for i, item in enumerate(ranked["item_id"].numpy()[0]) if item}
    present = ids.numpy()[0] != b""
    order = [place[item] for item in ids.numpy()[0][present]]
    logits = retrieved["score"].numpy()[:, present]
    ranker_logits = ranked["score"].numpy()[:, order]
    total = 0.0
    for start in range(0, len(order), ROWS_PER_CHUNK):
      actions = np.arange(start, min(start + ROWS_PER_CHUNK, len(order)))
      policy = TwoStagePolicy(
        np.repeat(logits, len(actions), 0), np.repeat(ranker_logits, len(actions), 0), SLATE
      )
      total += np.exp(policy.log_prob(actions).numpy().astype(np.float64)).sum()
    sums[user] = total
  return sums


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", type=pathlib.Path, help="an export, or a directory of versions")
  parser.add_argument("--items", type=int, nargs="+", default=[3883])
  parser.add_argument("--width", type=int, default=20, help="of the generator's item vectors")
  parser.add_argument("--rows", type=int, nargs="+", default=[1], help="users a call")
  parser.add_argument("--excluded", type=int, nargs="+", default=[0, 500])
  parser.add_argument("--turns", type=int, default=300)
  parser.add_argument("--users", type=int, default=5, help="whose propensities are summed")
  parser.add_argument("--output", type=pathlib.Path, help="directory of serving.csv, serving.png")
  args = parser.parse_args(arguments)
  table = []
  with tempfile.TemporaryDirectory() as scratch:
    for items in args.items:
      if args.model:
        path = latest(args.model)
      else:
        path = pathlib.Path(scratch) / str(items)
        serving.save(untrained(items, args.width), path)
      signatures = tf.saved_model.load(str(path)).signatures
      table += measure(signatures, items, args.width, args)
      if items <= 10_000:
        sums = propensity_sums(signatures, args.users)
        print(f"  propensities of {args.users} users sum to 1 within {np.abs(sums - 1).max():.1e}")
  if args.output:
    args.output.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(table)
    frame.to_csv(args.output / "serving.csv", index=False, float_format="%.6g")
    draw(frame, args.output / "serving.png")


if __name__ == "__main__":
  main()
