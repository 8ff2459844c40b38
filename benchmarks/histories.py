"""What sequence features are worth: recall@10 of the next movie that users of MovieLens-1M like.

  python -m benchmarks.histories --data_dir=ml-1m

Ratings above 3 are the rows. The latest 15% test, and those before validate (--part). Towers are
fitted to the earlier ones by cross-entropy against sampled items, for a fixed number of epochs:
with the user's id alone ("none"), or also with what the user liked before the row, by an encoder.
They recommend the catalogue without what the user liked before. Recall@10 is the share of test
rows, drawn at random, whose movie is among the first ten. An id says nothing about users without
training rows, so that the others are also shown alone.

  python -m benchmarks.histories --data_dir=ml-1m --kinds attention rated stars

"rated" and "stars" read by attention all that the user rated before, and "stars" also the ratings,
as kinds of events. Then no kind recommends what the user rated before.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd

from tf_twostage import BanditLog, losses  # before tensorflow: selects Keras 2
from tf_twostage.config import SEQUENCE_ENCODERS, EncoderConfig, FitConfig
from tf_twostage.data.histories import FIRST, Histories
from tf_twostage.evaluation.evaluation_log import model_inputs
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.generator import CandidateGenerator
from tf_twostage.models.support import SampledSupport
from tf_twostage.training.loop import fit

import tensorflow as tf  # isort: skip

K, SHARE, CHUNK = 10, 0.15, 512
RATED = ("rated", "stars")


def likes(directory: pathlib.Path, latest: float, rated: bool) -> BanditLog:
  """Ratings above 3, with histories of what users liked, and perhaps of what they rated.

  A rating's propensity is unknown, and cross-entropy needs none.
  """
  columns = ["user", "item", "rating", "time"]
  frame = pd.read_csv(directory / "ratings.dat", sep=":", usecols=[0, 2, 4, 6], names=range(7))
  frame = frame.set_axis(columns, axis=1)
  frame = frame[frame["time"] >= frame["time"].quantile(1 - latest)]
  frame = frame[rated | (frame["rating"] > 3)]
  frame = frame.assign(liked=frame["rating"] > 3, propensity=1.0)
  roles = {"user": "user", "item": "item", "reward": "liked", "time": "time"}
  stars = {"kind": "sequence", "column": "item", "events": "rating"}
  past = {"liked": "item"} | ({"stars": stars} if rated else {})
  log = BanditLog.from_pandas(frame, propensity="propensity", name="likes", sequences=past, **roles)
  return log.select(log.rows.reward > 0)


def reading(log: BanditLog, kind: str) -> BanditLog:
  """The log with the one history that towers of this kind read."""
  name = "stars" if kind in RATED else "liked"
  past = {} if kind == "none" else {name: log.rows.histories[name]}
  own = tuple(f for f in log.schema.sequences if f.name in past)
  if kind == "rated":
    past = {n: dataclasses.replace(h, events=None, kinds=()) for n, h in past.items()}
    own = tuple(dataclasses.replace(f, kinds=()) for f in own)
  return dataclasses.replace(
    log,
    schema=dataclasses.replace(log.schema, user=(*log.schema.user_table, *own)),
    rows=dataclasses.replace(log.rows, histories=past),
  )


def trained(log: BanditLog, kind: str, seed: int, args: argparse.Namespace) -> TwoTower:
  """Towers of the rows of a log, which read histories unless the kind is "none"."""
  encoder = EncoderConfig(id_width=args.width, sequence_length=args.length)
  if kind in SEQUENCE_ENCODERS:
    encoder = dataclasses.replace(encoder, sequence_encoder=kind)
  settings = FitConfig(epochs=args.epochs, batch_size=args.batch_size, sparse_l2=True)
  tables = EncodedTables.encode(log.schema, log.users, log.items)
  tf.keras.utils.set_random_seed(seed)
  towers = TwoTower.of(tables, encoder, settings, item_bias=True)
  draws = losses.DRAWS["popularity"](log.rows.shown(log.num_items))
  size = settings.batch_size + args.sampled
  support = SampledSupport(draws, num_items=log.num_items, size=size, seed=seed)
  model = CandidateGenerator(towers, losses.get("cross_entropy"), support=support)
  batches = log.rows.batches(tables.users, batch_size=settings.batch_size, seed=seed)
  fit(model, batches, settings, rows=len(log), name=f"{kind}, seed {seed}")
  return towers


def hits(towers: TwoTower, log: BanditLog, rows: np.ndarray, past: Histories) -> np.ndarray:
  """Whether the item of each of these rows is among the first K without its past, [m] bool."""
  users = EncodedTables.encode(log.schema, log.users, log.items).users
  candidates = towers.candidates()
  found = []
  for some in np.array_split(rows, -(-len(rows) // CHUNK)):
    query = towers.query(model_inputs(log.rows, some, users)["user"])
    scores = np.array(tf.matmul(query, candidates, transpose_b=True))
    items = past.padded(some).numpy() - FIRST
    row, place = np.nonzero(items >= 0)
    scores[row, items[row, place]] = -np.inf
    first = np.argpartition(-scores, K, axis=1)[:, :K]
    found.append((first == log.rows.action[some, np.newaxis]).any(axis=1))
  return np.concatenate(found)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", type=pathlib.Path, required=True)
  parser.add_argument("--kinds", nargs="*", default=("none", *SEQUENCE_ENCODERS))
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--epochs", type=int, default=1)
  parser.add_argument("--batch_size", type=int, default=512)
  parser.add_argument("--sampled", type=int, default=512)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--length", type=int, default=EncoderConfig.sequence_length)
  parser.add_argument("--rows", type=int, default=10_000, help="evaluated rows that are drawn")
  parser.add_argument("--latest", type=float, default=1.0, help="share of the ratings to use")
  parser.add_argument("--part", default="test", choices=("validation", "test"))
  args = parser.parse_args()
  rated = not {*RATED}.isdisjoint(args.kinds)
  log = likes(args.data_dir, args.latest, rated).with_sequence_length(args.length)
  whole = log.rows.histories["stars" if rated else "liked"]
  whole = dataclasses.replace(whole, length=int((whole.end - whole.begin).max()))
  masks = log.masks("time", validation=SHARE if args.part == "validation" else 0.0, test=SHARE)
  known = np.isin(log.rows.user_index, log.rows.user_index[masks["train"]])
  test = np.flatnonzero(masks[args.part])
  rows = np.sort(np.random.default_rng(0).choice(test, min(args.rows, len(test)), replace=False))
  print(
    f"{masks['train'].sum()} training rows; {len(rows)} of {len(test)} {args.part} rows, of which"
    f" {known[rows].sum()} of known users"
  )
  recall: dict[str, list[list[float]]] = {kind: [] for kind in args.kinds}
  for seed in range(args.seeds):
    for kind, values in recall.items():
      own = reading(log, kind)
      towers = trained(own.select(masks["train"]), kind, seed, args)
      found = hits(towers, own, rows, whole)
      values.append([found.mean(), found[known[rows]].mean()])
      print(f"seed {seed} {kind:10s} {values[-1][0]:.4f} {values[-1][1]:.4f}", flush=True)
  print(f"\nrecall@{K}, mean and standard error over {args.seeds} seeds")
  print(f"{'':10s} {'all users':>17s} {'known users':>17s}")
  for kind, values in recall.items():
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=min(args.seeds - 1, 1))
    error = spread / args.seeds**0.5
    shown = (f"{m:.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True))
    print(f"{kind:10s} " + " ".join(f"{text:>17s}" for text in shown))


if __name__ == "__main__":
  main()
