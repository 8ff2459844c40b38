"""Cost and accuracy of the exact two-stage policy, relative to cross-entropy.

  python -m benchmarks.two_stage_policy
  python -m benchmarks.two_stage_policy --items 3883 --accuracy

Contenders take turns within one process, so that a busy machine slows all of them alike; a step is
the loss and its gradient with respect to the logits. Memory is what the process's peak grows by
over the steps, each contender in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tests.oracle import softmax
from tests.policy_oracle import ranker_probability
from tf_twostage import policies  # before tensorflow: selects Keras 2

import tensorflow as tf  # isort: skip

WARM_UP = 5
STEPS = 30
ALPHA = 1.0
SMALLEST = 1e-6  # the qbar down to which errors are counted
WIDTH = 400  # items of the rows in the stress grid
log_prob = policies.two_stage_log_prob
compiled_log_prob = tf.function(log_prob, jit_compile=True, autograph=False)


def cross_entropy(logits, ranker_logits, actions, scale, slate_size):
  del ranker_logits, slate_size
  return scale * tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)


def two_stage_likelihood(function):
  """-scale log π(a_i)."""

  def loss(logits, ranker_logits, actions, scale, slate_size):
    log_p, log_share = function(logits, ranker_logits, actions, slate_size)
    return -scale * (np.log(slate_size) + log_p + log_share)

  return loss


def two_stage_ips(function):
  """-scale (sg(qbar) log p(a_i) + α qbar)."""

  def loss(logits, ranker_logits, actions, scale, slate_size):
    log_p, log_share = function(logits, ranker_logits, actions, slate_size)
    share = tf.exp(log_share)
    return -scale * (tf.stop_gradient(share) * log_p + ALPHA * share)

  return loss


def step(loss):
  """(logits, columns...) to the mean loss and its gradient."""

  @tf.function(autograph=False)
  def run(logits, *columns):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      value = tf.reduce_mean(loss(logits, *columns))
    return value, tape.gradient(value, logits)

  return run


def probabilities(logits, ranker_logits, actions, scale, slate_size):
  del actions, scale
  return policies.two_stage_probabilities(logits, ranker_logits, slate_size)


def contenders():
  return {
    "cross-entropy": step(cross_entropy),
    "log pi": step(two_stage_likelihood(log_prob)),
    "2-IPS": step(two_stage_ips(log_prob)),
    "log pi, XLA": step(two_stage_likelihood(compiled_log_prob)),
    "2-IPS, XLA": step(two_stage_ips(compiled_log_prob)),
    "all probabilities": tf.function(probabilities, autograph=False),
    "softmax": tf.function(lambda logits, *_: tf.nn.softmax(logits)),
  }


def inputs(batch, items, slate_size):
  rng = np.random.default_rng(0)
  return (
    tf.constant(rng.normal(scale=2.0, size=(batch, items)), tf.float32),
    tf.constant(rng.normal(scale=2.0, size=(batch, items)), tf.float32),
    tf.constant(rng.integers(items, size=batch), tf.int32),
    tf.constant(rng.uniform(0.0, 2.0, size=batch), tf.float32),
    slate_size,
  )


def peak_resident():
  """Peak resident size of this process in MB (Linux)."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_growth(name, batch, items, slate_size):
  """Growth of the peak resident size over a few steps, in MB; in a fresh process."""
  run, arguments = contenders()[name], inputs(batch, items, slate_size)
  small = (*(x[:2, :64] if x.shape.rank == 2 else tf.zeros_like(x[:2]) for x in arguments[:4]),)
  run(*small, slate_size)  # what TensorFlow loads on first use is not counted
  before = peak_resident()
  for _ in range(WARM_UP):
    run(*arguments)
  return peak_resident() - before


def print_costs(batch, items, slate_size):
  runs, arguments = contenders(), inputs(batch, items, slate_size)
  times = {name: [] for name in runs}
  for turn in range(WARM_UP + STEPS):
    for name, run in runs.items():
      start = time.perf_counter()
      tf.nest.flatten(run(*arguments))[-1][0, 0].numpy()
      if turn >= WARM_UP:
        times[name].append(time.perf_counter() - start)
  reference = np.median(times["cross-entropy"])
  print(f"\nbatch {batch}, {items} items, K = {slate_size}")
  print(f"{'':20s} {'ms':>8s} {'ratio':>8s} {'peak MB':>8s}")
  context = multiprocessing.get_context("spawn")
  for name, seconds in times.items():
    with context.Pool(1) as pool:
      growth = pool.apply(peak_growth, (name, batch, items, slate_size))
    median = np.median(seconds)
    print(f"{name:20s} {median * 1e3:8.2f} {median / reference:8.2f} {growth:8.0f}")


def stress_grid(slate_size, seed=0):
  """Rows that try to break the quadrature, padded to one width with excluded items.

  p from flat to one-hot; ranker logits from tied to spread over ±50; and pairs, an action against
  one rival of any weight, anywhere within a bin.

  Returns:
    logits and ranker logits [C, N]; qbar [C, N], NaN for excluded items.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for spread in (0.1, 1.0, 3.0, 10.0, 20.0):
    for sharpness in (0.0, 1.0, 3.0, 10.0):
      for g in (rng.normal(size=WIDTH).clip(-2.5, 2.5), rng.uniform(-2.5, 2.5, size=WIDTH)):
        items = rng.choice([6, 50, WIDTH])
        rows.append((rng.normal(scale=sharpness, size=items), spread * g[:items]))
  for gap in np.linspace(0.01, 14.0, 60):
    for mass in (1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999):
      g = np.array([0.0, gap + rng.uniform(0.0, 0.3)])
      rows.append((np.log([mass, 1.0 - mass]), g))
  logits = np.full((len(rows), WIDTH), -np.inf, np.float32)
  ranker_logits = np.zeros((len(rows), WIDTH), np.float32)
  shares = np.full((len(rows), WIDTH), np.nan)
  for row, (z, g) in enumerate(rows):
    items = len(z)
    logits[row, :items], ranker_logits[row, :items] = z, g
    p = softmax(logits[row, :items].astype(np.float64))
    g = ranker_logits[row, :items].astype(np.float64)
    shares[row, :items] = ranker_probability(p, g, np.arange(items), slate_size)
  return logits, ranker_logits, shares


def worst_errors(logits, ranker_logits, shares, slate_size):
  """The largest relative errors of one logged action a row (every action in turn) and of all."""
  p = softmax(logits.astype(np.float64))
  everything = policies.two_stage_probabilities(logits, ranker_logits, slate_size).numpy()
  counted = (shares >= SMALLEST) & (p >= 1e-30)
  rows, actions = np.nonzero(counted)
  _, log_share = log_prob(logits[rows], ranker_logits[rows], actions, slate_size)
  single = np.abs(np.exp(log_share) / shares[counted] - 1)
  whole = np.abs(everything[counted] / (slate_size * p * shares)[counted] - 1)
  return single.max(), whole.max()


def clear_tables():
  policies._Race.for_action.cache_clear()
  policies._Race.for_catalogue.cache_clear()


def print_accuracy():
  slate_sizes = (2, 3, 5, 30, 100)
  grids = {slate_size: stress_grid(slate_size) for slate_size in slate_sizes}
  chosen = policies.BIN_WIDTH, policies.LOG_TIME_STEP
  print(f"\nworst relative error, qbar >= {SMALLEST:g}, over {len(grids[2][0])} rows of every K in")
  print(f"{slate_sizes}; float32")
  print(f"{'bin':>8s} {'step':>6s} {'bins':>6s} {'nodes':>6s} {'one action':>11s} {'all':>9s}")
  widths = [(1 / n, chosen[1]) for n in (4, 8, 16, 24, 32)]
  for setting in dict.fromkeys([*widths, *((chosen[0], h) for h in (1.2, 1.0, 0.9, 0.75, 0.6))]):
    policies.BIN_WIDTH, policies.LOG_TIME_STEP = setting
    clear_tables()
    race = policies._Race.for_action(30)
    errors = np.max([worst_errors(*grid, size) for size, grid in grids.items()], axis=0)
    bins, nodes = race.survival.value.shape
    mark = "  chosen" if setting == chosen else ""
    print(
      f"    1/{1 / setting[0]:<2.0f} {setting[1]:6.2f} {bins:6d} {nodes:6d}"
      f" {errors[0]:11.1e} {errors[1]:9.1e}{mark}"
    )
  policies.BIN_WIDTH, policies.LOG_TIME_STEP = chosen
  clear_tables()


def print_accuracy_of_large_catalogues():
  """Errors of equal and of unequal logits, ranker logits uniform on ±50 and normal."""
  print(f"\nworst relative error at 40 actions of a row, qbar >= {SMALLEST:g}; float32")
  print(f"{'N':>8s} {'K':>6s} {'one action':>11s} {'all':>9s} {'|sum - 1|':>10s}")
  rng = np.random.default_rng(0)
  for items in (1000, 4000, 30_000, 100_000):
    rankers = (rng.uniform(-50, 50, items), rng.normal(scale=2, size=items))
    for slate_size in (2, 30, 100, 1000):
      errors = []
      for sharpness, g in itertools.product((0.0, 2.0), rankers):
        z, g = np.float32([sharpness * rng.normal(size=items), g])
        p = softmax(z.astype(np.float64))
        best = np.argsort(-g)[
          np.linspace(0, min(items, 10 * items // slate_size) - 1, 40, dtype=int)
        ]
        shares = ranker_probability(p, g.astype(np.float64), best, slate_size, step=0.25)
        actions, shares = best[shares >= SMALLEST], shares[shares >= SMALLEST]
        single = [
          np.exp(log_prob(z[None], g[None], [action], slate_size)[1][0]) for action in actions
        ]
        whole = policies.two_stage_probabilities(z[None], g[None], slate_size).numpy()[0]
        errors.append(
          [
            np.abs(single / shares - 1).max(),
            np.abs(whole[actions] / (slate_size * p[actions] * shares) - 1).max(),
            abs(whole.sum(dtype=np.float64) - 1),
          ]
        )
      one, every, total = np.max(errors, axis=0)
      print(f"{items:8d} {slate_size:6d} {one:11.1e} {every:9.1e} {total:10.1e}")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--items", type=int, nargs="+", default=[3883, 30938])
  parser.add_argument("--slate_size", type=int, default=30, help="K")
  parser.add_argument("--accuracy", action="store_true", help="print the table of errors as well")
  args = parser.parse_args()
  for items in args.items:
    print_costs(args.batch, items, args.slate_size)
  if args.accuracy:
    print_accuracy()
    print_accuracy_of_large_catalogues()


if __name__ == "__main__":
  main()
