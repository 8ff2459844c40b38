"""Time of a loss and its gradient with respect to the logits, relative to cross-entropy.

  python -m benchmarks.losses_step
  python -m benchmarks.losses_step --items 1000 4000 16000 31000 --only two_stage_ips

Contenders take turns within one process, so that a busy machine slows all of them alike; a ratio
is the median of the ratios of processor time within a turn.
"""

from __future__ import annotations

import argparse
import os
import resource

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage import losses, policies  # before tensorflow: selects Keras 2
from tf_twostage.losses.slates import sample_slates, slate_counts
from tf_twostage.policies import SoftmaxPolicy, fusing

import tensorflow as tf  # isort: skip

from benchmarks import measuring

WARM_UP = 5


def step(objective, read=lambda terms: tf.reduce_mean(terms.loss)):
  """One training step's share of the loss: (logits, columns...) to what it reads and the gradient.

  Args:
    objective: a loss.
    read: from its terms to scalars, the mean loss first.
  """

  def run(logits, *columns):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      scalars = tf.nest.flatten(read(objective.terms(logits, *columns)))
    return [tape.gradient(scalars[0], logits)[0, 0], *scalars]

  return run


def compiled(loss):
  """A step as XLA compiles it in long trainings: as a whole, or parts of it."""
  run = step(loss)
  if not loss.dynamic:
    return tf.function(run, jit_compile=True, autograph=False)

  def fused(*columns):
    with fusing():
      return run(*columns)

  return fused


def parts(slate_size):
  """What exact 2-IPS under XLA begins with, each part with those before it, by name."""
  race = policies._Race.for_action(slate_size)

  def filled(logits, actions, _, __, ranker_logits):
    reference = tf.gather(ranker_logits, actions, batch_dims=1)
    return policies._Bins.fill(tf.nn.softmax(logits / np.e), ranker_logits, reference, race)

  def bins(*columns):
    weights, index, _ = filled(*columns)
    sums = tf.math.real(weights) * tf.cast(index, tf.float32), tf.math.imag(weights)
    return [tf.reduce_sum(each) for each in sums]

  functions = {
    "softmax": lambda logits, *_: tf.reduce_sum(tf.nn.softmax(logits / np.e)[:, 0]),
    "bins": bins,
    "sums by bins": lambda *columns: tf.add(*map(tf.reduce_sum, filled(*columns).moments())),
    "survival": lambda *columns: tf.reduce_sum(filled(*columns).log_survival(race)),
    "counts": lambda logits, actions, _, __, ranker_logits: tf.reduce_sum(
      policies.expected_slate_counts(logits / np.e, ranker_logits, actions, slate_size)[0]
    ),
  }
  return {
    f"  up to its {name}": tf.function(function, jit_compile=True, autograph=False)
    for name, function in functions.items()
  }


def diagnosed(terms):
  """The mean loss, and of every diagnostic what a training curve shows."""
  shown = [t for t in (terms.ratio, terms.weights, terms.ranker_probability) if t is not None]
  return [tf.reduce_mean(terms.loss), *map(tf.reduce_mean, shown), *map(tf.reduce_max, shown)]


def contenders(batch: int, items: int, slate_size: int, num_slates: int):
  """Functions of (logits, actions, propensities, rewards, ranker_logits), by name."""
  size = {"slate_size": slate_size}
  slates = {"num_slates": num_slates, **size}
  either = [name for name, loss in losses.LOSSES.items() if "policy" in loss.parameters()]
  runs = {name: step(losses.get(name)) for name in ("binary_cross_entropy", *either)}
  runs["top_k"] = step(losses.get("top_k", **size))
  for name in either:
    for policy in ("two_stage", "distinct"):
      runs[f"{name}, {policy} policy"] = step(losses.get(name, policy=policy, **size))
  exact = losses.get("two_stage_ips", sampling="exact", **size)
  runs["two_stage_ips, exact"] = step(exact)
  runs["two_stage_ips, exact, XLA"] = compiled(exact)
  runs |= parts(slate_size)
  runs["cross_entropy, XLA"] = compiled(losses.get("cross_entropy"))
  for policy in ("two_stage", "distinct"):
    runs[f"ips, {policy} policy, XLA"] = compiled(losses.get("ips", policy=policy, **size))
  runs["vanilla_policy_gradient"] = step(losses.get("vanilla_policy_gradient", **size))
  for sampling in ("categorical", "systematic"):
    loss = losses.get("two_stage_ips", sampling=sampling, **slates)
    options = {"temperature": loss.sampling_temperature, "sampling": sampling, **slates}
    runs[f"two_stage_ips, {sampling}"] = step(loss)
    runs[f"  with diagnostics, {sampling}"] = step(loss, diagnosed)
    runs[f"  of which slates, {sampling}"] = lambda logits, *_, options=options: tf.reduce_sum(
      sample_slates(logits, **options)
    )
  runs["  of which tf.random.categorical"] = lambda logits, *_: tf.reduce_sum(
    tf.random.categorical(logits / np.e, num_slates * (slate_size - 1), dtype=tf.int32)
  )
  drawn = sample_slates(tf.zeros([batch, items]), sampling="systematic", **slates)
  runs["  of which slate_counts"] = lambda logits, actions, p, r, ranker_logits: tf.reduce_sum(
    slate_counts(drawn, actions, ranker_logits, alpha=0.01)[0]
  )
  runs["policy entropy, as reported"] = lambda logits, *_: SoftmaxPolicy(logits).entropy()
  runs["ips with diagnostics"] = step(losses.get("ips"), diagnosed)
  return runs


def measure(args, items: int) -> None:
  rng = np.random.default_rng(0)
  shape = (args.batch, items)
  columns = (
    tf.constant(rng.normal(scale=args.logit_stddev, size=shape), tf.float32),
    tf.constant(rng.integers(items, size=args.batch), tf.int32),
    tf.fill([args.batch], 1.0 / items),
    tf.ones([args.batch]),
    tf.constant(rng.normal(size=shape), tf.float32),
  )
  runs = {
    name: tf.function(run, autograph=False)
    for name, run in contenders(*shape, args.slate_size, args.num_slates).items()
    if name == "cross_entropy" or not args.only or name.startswith(tuple(args.only))
  }
  times = measuring.take_turns(
    {name: lambda run=run: run(*columns) for name, run in runs.items()},
    args.steps,
    warm_up=WARM_UP,
  )
  reference = times["cross_entropy"].processor
  print(f"{items:6d} items {'ms':>26s} {'cpu ms':>8s} {'ratio':>8s}")
  for name, seconds in times.items():
    clock, processor = 1e3 * np.median(seconds, axis=1)
    ratio = np.median(seconds.processor / reference)
    print(f"{name:30s} {clock:8.2f} {processor:8.2f} {ratio:8.2f}")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--items", type=int, nargs="+", default=[3883])
  parser.add_argument("--num_slates", type=int, default=100)
  parser.add_argument("--slate_size", type=int, default=30, help="K, the logged item counted")
  parser.add_argument("--logit_stddev", type=float, default=1.0)
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--only", nargs="*", help="names that start with one of these")
  args = parser.parse_args()
  for items in args.items:
    measure(args, items)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
  print(f"peak memory of the process {peak:.2f} GiB")


if __name__ == "__main__":
  main()
