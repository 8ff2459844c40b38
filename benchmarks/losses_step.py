"""Time of a loss and its gradient with respect to the logits, relative to cross-entropy.

  python benchmarks/losses_step.py --items 30938

Losses take turns within one process, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage import losses  # before tensorflow: selects Keras 2

import tensorflow as tf  # isort: skip

WARM_UP = 5


def step(loss):
  """One training step's share of the loss: (logits, columns...) to the gradient."""

  @tf.function
  def run(logits, *columns):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      value = tf.reduce_mean(loss(logits, *columns))
    return tape.gradient(value, logits)

  return run


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--items", type=int, default=3883)
  parser.add_argument("--num_slates", type=int, default=100, help="tau")
  parser.add_argument("--slate_size", type=int, default=30, help="K, the logged item counted")
  parser.add_argument("--logit_stddev", type=float, default=1.0)
  parser.add_argument("--steps", type=int, default=30)
  args = parser.parse_args()

  rng = np.random.default_rng(0)
  shape = (args.batch, args.items)
  logits = tf.constant(rng.normal(scale=args.logit_stddev, size=shape), tf.float32)
  ranker_logits = tf.constant(rng.normal(size=shape), tf.float32)
  columns = (
    tf.constant(rng.integers(args.items, size=args.batch)),
    tf.fill([args.batch], 1.0 / args.items),
    tf.ones([args.batch]),
    ranker_logits,
  )
  draws = args.num_slates * (args.slate_size - 1)
  slates = losses.TwoStageIPS(num_slates=args.num_slates, slate_size=args.slate_size)
  runs = {
    "cross_entropy": step(losses.CrossEntropy()),
    "binary_cross_entropy": step(losses.BinaryCrossEntropy()),
    "ips": step(losses.IPS()),
    "two_stage_ips": step(slates),
    "  of which draws": tf.function(
      lambda logits, *_: tf.random.categorical(logits / slates.sampling_temperature, draws)
    ),
  }
  times = {name: [] for name in runs}
  for turn in range(WARM_UP + args.steps):
    for name, run in runs.items():
      start = time.perf_counter()
      run(logits, *columns)[0, 0].numpy()
      if turn >= WARM_UP:
        times[name].append(time.perf_counter() - start)

  reference = np.median(times["cross_entropy"])
  print(f"{'':20s} {'ms':>8s} {'ratio':>8s}")
  for name, seconds in times.items():
    median = np.median(seconds)
    print(f"{name:20s} {median * 1e3:8.2f} {median / reference:8.2f}")


if __name__ == "__main__":
  main()
