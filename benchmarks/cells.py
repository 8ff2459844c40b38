"""Recall and latency of the approximate index of exports against the exact best items.

  python -m benchmarks.cells --items 1000000 --cells 1000 --probes 4 16 32 64

One user a call. Items and users lie around the same 1,000 centers, as far from them as the centers
from each other. Contenders take turns; ratios are medians of turns.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage.serving.cells import Cells  # before tensorflow: selects Keras 2
from tf_twostage.top_k import top_k

import tensorflow as tf  # isort: skip

from benchmarks import measuring

CENTERS, K, USERS = 1_000, 100, 200


def clustered(rows: int, width: int, seed: int) -> np.ndarray:
  """Vectors around the same centers, whatever the seed."""
  centers = np.random.default_rng(0).normal(size=(CENTERS, width))
  rng = np.random.default_rng(seed)
  noise = rng.standard_normal((rows, width), np.float32)
  return (centers.astype(np.float32)[rng.integers(CENTERS, size=rows)] + noise) * width**-0.25


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--cells", type=int, default=1_000)
  parser.add_argument("--probes", type=int, nargs="+", default=[4, 16, 32, 64])
  parser.add_argument("--turns", type=int, default=40)
  args = parser.parse_args(arguments)
  items, users = clustered(args.items, args.width, 1), clustered(USERS, args.width, 2)
  catalogue = tf.Variable(items.T)

  @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, args.width])])
  def exact(query):
    return top_k(tf.matmul(query, catalogue), K)[1]

  def visiting(probes: int):
    cells = copy.copy(index)
    cells.probes = probes

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, args.width])])
    def visit(query):
      ids, scores = cells(query)
      return tf.gather(ids, top_k(scores, K)[1], batch_dims=1)

    return visit

  index = Cells(items, args.cells, 1)
  found = {"exact": exact}
  for probes in args.probes:
    found[f"{probes} of {index.items.shape[0]} cells"] = visiting(probes)
  turn = itertools.count()

  def one(function):
    return lambda: function(users[next(turn) % USERS][np.newaxis])

  times = measuring.take_turns({n: one(f) for n, f in found.items()}, args.turns, warm_up=5)
  wanted = np.concatenate([exact(users[row : row + 1]).numpy() for row in range(USERS)])
  print(f"{args.items:,} items of width {args.width}, one user a call")
  print(f"{'':24} {'p50 ms':>8} {'cpu ms':>8} {'times faster':>13} {'recall@' + str(K):>11}")
  for name, (clock, processor) in times.items():
    ids = np.concatenate([found[name](users[row : row + 1]).numpy() for row in range(USERS)])
    recall = np.mean([np.isin(w, i).mean() for w, i in zip(wanted, ids, strict=True)])
    faster = np.median(times["exact"].processor / processor)
    own = 1e3 * np.median(processor)
    print(f"{name:24} {1e3 * np.median(clock):8.2f} {own:8.2f} {faster:13.1f} {recall:11.3f}")


if __name__ == "__main__":
  main()
