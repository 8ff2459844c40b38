"""Bias and variance of 2-IPS's sampled slates, by number of slates, against independent draws.

  python -m benchmarks.slates

Estimates of a row are its ranker share (the mean of q_t) and its counts C (what the gradient is
made of; α = 1). Bias is that of the mean share, in percent of the share under independent draws,
with a standard error; variances are in multiples of those of independent draws.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from tf_twostage.losses.slates import SAMPLING, sample_slates, slate_counts

import tensorflow as tf  # isort: skip

ROWS = 128  # of a call; rows of one call share a deal, so errors are between calls


def estimates(arguments, sampling: str, num_slates: int) -> tuple[np.ndarray, np.ndarray]:
  """Shares [calls, rows] and counts [calls, rows, N] of one row, drawn again and again."""
  rng = np.random.default_rng(0)
  logits, ranker_logits = rng.normal(size=(2, 1, arguments.items)).astype(np.float32)
  logits, ranker_logits = (tf.repeat(x, ROWS, 0) for x in (2 * logits, 2 * ranker_logits))
  actions = tf.fill([ROWS], int(np.argmax(logits[0])))

  @tf.function(autograph=False)
  def call(seed):
    size = {"num_slates": num_slates, "slate_size": arguments.slate_size}
    slates = sample_slates(logits, sampling=sampling, stateless_seed=seed, **size)
    return slate_counts(slates, actions, ranker_logits, alpha=1.0)

  counts, shares = zip(*(call(tf.constant([n, 0])) for n in range(arguments.calls)), strict=True)
  return np.stack(shares), np.stack(counts)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--items", type=int, default=200)
  parser.add_argument("--slate_size", type=int, default=30, help="K")
  parser.add_argument("--num_slates", type=int, nargs="+", default=[1, 2, 5, 20, 100], help="τ")
  parser.add_argument("--calls", type=int, default=100)
  arguments = parser.parse_args()
  print(f"{arguments.items} items, K = {arguments.slate_size}")
  print(f"{'τ':>5s} {'bias of the share':>20s} {'variance: share':>16s} {'counts':>8s}")
  for num_slates in arguments.num_slates:
    made = {sampling: estimates(arguments, sampling, num_slates) for sampling in SAMPLING}
    (shares, counts), (reference, counts_reference) = made["systematic"], made["categorical"]
    means = [x.mean(axis=1) for x in (shares, reference)]
    error = np.sqrt(sum(m.var(ddof=1) / len(m) for m in means))
    share = means[1].mean()
    bias, error = 100 * (means[0].mean() - share) / share, 100 * error / share
    variances = [
      a.var(axis=(0, 1)).sum() / b.var(axis=(0, 1)).sum()
      for a, b in ((shares, reference), (counts, counts_reference))
    ]
    print(f"{num_slates:5d} {bias:10.2f} ± {error:5.2f} % {variances[0]:16.2f} {variances[1]:8.2f}")


if __name__ == "__main__":
  main()
