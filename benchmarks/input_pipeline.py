"""Speed of an epoch from files against the same rows in memory, and the memory that each takes.

  python -m benchmarks.input_pipeline --directory=DIR

writes a synthetic log once (20,000,000 rows, users and items drawn by Zipf's law), then trains a
candidate generator on it for an epoch, in a process of its own each: two towers of user and item
ids, 1-IPS with a softmax over the whole catalogue. Rows a second are those of all steps but the
first 20, which build the graph.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tf_twostage import losses
from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data import streamed  # before tensorflow: selects Keras 2
from tf_twostage.data.rows import LogRows, joined
from tf_twostage.data.schema import Id, Schema
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.training.loop import make_optimizer
from tf_twostage.training.progress import InputWait, progress_bar

import tensorflow as tf  # isort: skip

WARM_UP = 20
PART = 1 << 20


def parts(args):
  """The log, a million rows at a time."""
  for start in range(0, args.rows, PART):
    rng, n = np.random.default_rng([0, start]), min(PART, args.rows - start)
    yield LogRows(
      user_index=np.minimum(rng.zipf(1.2, n), args.users) - 1,
      action=np.minimum(rng.zipf(1.3, n), args.items) - 1,
      propensity=rng.uniform(0.001, 1, n),
      reward=(rng.random(n) < 0.1).astype(np.float32),
      context={"time": 1.7e9 + start + np.arange(n, dtype=np.float64)},
    )


def generator(args):
  ids = {side: tuple(map(str, range(getattr(args, side)))) for side in ("users", "items")}
  schema = Schema((Id("user_id", ids["users"]),), (Id("item_id", ids["items"]),))
  raw = {name: np.array(values) for name, values in ids.items()}
  tables = EncodedTables.encode(schema, {"user_id": raw["users"]}, {"item_id": raw["items"]})
  tf.keras.utils.set_random_seed(0)
  towers = TwoTower(tables, EncoderConfig(id_width=args.width, embedding_stddev=0.1), l2=1e-6)
  model = CandidateGenerator(towers, losses.get("ips"))
  model.compile(optimizer=make_optimizer(FitConfig()))
  return model, tables


def train(args) -> dict:
  """An epoch; in this process."""
  files = args.directory / "rows"
  log = streamed.load(files) if args.source == "files" else joined(list(parts(args)))
  model, tables = generator(args)
  wait = InputWait()
  batches = iter(wait.watched(log.batches(tables.users, batch_size=args.batch_size, seed=0)))
  step, steps = model.make_train_function(), len(log) // args.batch_size
  steps = min(steps, args.steps or steps)
  bar = progress_bar(args.source, steps)
  for number in range(steps):
    if number == WARM_UP:
      wait.reset()
      start = time.perf_counter(), time.process_time()
    if not np.isfinite(step(batches)["total_loss"]):
      raise FloatingPointError("the loss is not finite")
    bar.update()
  share = wait.share()
  seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
  return {
    "rows_per_second": round((steps - WARM_UP) * args.batch_size / seconds),
    "seconds": round(seconds, 1),
    "cpu_seconds": round(cpu, 1),
    "input_wait_share": round(share, 4),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--directory", type=pathlib.Path, required=True)
  parser.add_argument("--rows", type=int, default=20_000_000)
  parser.add_argument("--users", type=int, default=200_000)
  parser.add_argument("--items", type=int, default=2000)
  parser.add_argument("--width", type=int, default=20)
  parser.add_argument("--batch_size", type=int, default=1024)
  parser.add_argument("--steps", type=int, default=0, help="at most; 0: all of the epoch")
  parser.add_argument("--source", choices=["memory", "files"], help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.source:
    print(json.dumps(train(args)))
    return
  if not (args.directory / "rows" / "rows.json").exists():
    start = time.perf_counter()
    streamed.write(parts(args), args.directory / "rows")
    size = sum(f.stat().st_size for f in (args.directory / "rows").iterdir())
    print(f"written in {time.perf_counter() - start:.0f} s, {size / 1024**3:.2f} GiB", flush=True)
  found = {}
  for source in ("files", "memory"):
    command = [sys.executable, "-m", "benchmarks.input_pipeline", *sys.argv[1:]]
    done = subprocess.run(
      [*command, f"--source={source}"], stdout=subprocess.PIPE, text=True, check=True
    )
    found[source] = json.loads(done.stdout.splitlines()[-1])
    print(f"{source:8s}", found[source], flush=True)
  ratio = found["files"]["rows_per_second"] / found["memory"]["rows_per_second"]
  print(f"files / memory: {ratio:.2f}")


if __name__ == "__main__":
  main()
