"""Latency of an export, relative to a bare matrix product with top-k, and sums of propensities.

  python -m benchmarks.serving
  python -m benchmarks.serving --items 3883 1000000 --width 32
  python -m benchmarks.serving --model saved_models/ml1m

Without --model the export is made here, of an untrained pair with MovieLens-like features. Calls
are made in this process through the loaded SavedModel. Contenders take turns, so that a busy
machine slows all of them alike; a ratio is the median of the ratios within a turn. Processor time,
of all threads, says beside the clock of a busy machine what a call costs by itself.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage import serving  # before tensorflow: selects Keras 2
from tf_twostage.config import EncoderConfig
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.schema import Categorical, Id, Numeric, Schema
from tf_twostage.serving.versions import latest

import tensorflow as tf  # isort: skip

SLATE = 30
K = 10
USERS = 1000
WARM_UP = 10
ROWS_PER_CHUNK = 512
SIZES = {"gender": 2, "age": 7, "occupation": 21, "zip_code": 500}


def untrained(items: int, width: int) -> serving.Recommender:
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
  return serving.Recommender(schema, towers[0], TowerRanker(towers[1]), titles, SLATE)


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


def take_turns(contenders, turns: int) -> dict[str, np.ndarray]:
  """Seconds of every turn by name, [2, turns]: by the clock, and of this process's processors."""
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
  for turn in range(WARM_UP + turns):
    for name, run in contenders.items():
      start = time.perf_counter(), time.process_time()
      tf.nest.map_structure(lambda t: t.numpy(), run())
      end = time.perf_counter(), time.process_time()
      if turn >= WARM_UP:
        times[name].append((end[0] - start[0], end[1] - start[1]))
  return {name: np.array(seconds).T for name, seconds in times.items()}


def bare(items: int, width: int, rows: int):
  """A product with the catalogue and its top-k, in the faster of the two layouts."""
  rng = np.random.default_rng(0)
  vectors = tf.Variable(rng.normal(size=(width, items)).astype(np.float32))
  queries = tf.constant(rng.normal(size=(rows, width)).astype(np.float32))
  run = tf.function(lambda: tf.math.top_k(tf.matmul(queries, vectors), SLATE), autograph=False)
  return lambda: list(run())


def measure(signatures, items: int, width: int, args) -> None:
  for rows in args.rows:
    contenders = {"matrix product + top-k": bare(items, width, rows)}
    for name in ("recommend", "retrieve", "sample"):
      for excluded in args.excluded:
        run = signatures[name]
        inputs = request(run.structured_input_signature[1], rows, excluded)
        contenders[f"{name}, {excluded} excluded"] = lambda run=run, inputs=inputs: run(**inputs)
    times = take_turns(contenders, args.turns)
    reference, _ = next(iter(times.values()))
    print(f"{items:,} items of width {width}, {rows} users")
    print(f"  {'ms':38s} {'p50':>8s} {'p99':>8s} {'p99 cpu':>8s} {'ratio':>8s}")
    for name, (seconds, processor) in times.items():
      p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
      own, ratio = np.percentile(processor, 99) * 1e3, np.median(seconds / reference)
      print(f"  {name:38s} {p50:8.2f} {p99:8.2f} {own:8.2f} {ratio:8.2f}")


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


def main():
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
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    for items in args.items:
      if args.model:
        path = latest(args.model)
      else:
        path = pathlib.Path(scratch) / str(items)
        serving.save(untrained(items, args.width), path)
      signatures = tf.saved_model.load(str(path)).signatures
      measure(signatures, items, args.width, args)
      if items <= 10_000:
        sums = propensity_sums(signatures, args.users)
        print(f"  propensities of {args.users} users sum to 1 within {np.abs(sums - 1).max():.1e}")


if __name__ == "__main__":
  main()
