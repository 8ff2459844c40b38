"""Random numbers that belong to rows."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_twostage.serving import row_sampling

SEEDS = np.array([0, 1, 2, -1, 2**62, -(2**63)])


def mixed(x):
  """SplitMix64's finaliser, in Python's integers."""
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
  return x ^ (x >> 31)


def expected(seed, count):
  golden = 0x9E3779B97F4A7C15
  start = mixed(int(seed) % 2**64 * golden % 2**64)
  return [(mixed((start + i * golden) % 2**64) >> 12) / 2**52 for i in range(1, count + 1)]


@pytest.mark.parametrize("run", [row_sampling.uniforms, tf.function(row_sampling.uniforms)])
def test_uniforms_are_splitmix_in_graphs_and_outside(run):
  numbers = run(tf.constant(SEEDS), 3).numpy()
  np.testing.assert_array_equal(numbers, [expected(seed, 3) for seed in SEEDS])


def test_uniforms_of_successive_seeds_are_uniform_and_independent():
  numbers = row_sampling.uniforms(tf.range(100_000, dtype=tf.int64), 4).numpy()
  for column in numbers.T:
    assert stats.kstest(column, "uniform").pvalue > 1e-3
  # Neighbours within a row, and the same place of successive seeds.
  for first, second in ((numbers[:, 0], numbers[:, 1]), (numbers[:-1, 0], numbers[1:, 0])):
    counts = np.histogram2d(first, second, bins=20, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_draws_invert_the_distribution_function():
  logits = tf.math.log([[0.25, 0.0, 0.5, 0.25], [0.0, 0.0, 0.0, 1.0]])
  uniform = tf.constant([[0.0, 0.2, 0.3, 0.74, 0.76, 1 - 2.0**-52]] * 2, tf.float64)
  np.testing.assert_array_equal(
    row_sampling.draws(logits, uniform), [[0, 0, 2, 2, 3, 3], [3, 3, 3, 3, 3, 3]]
  )


def test_the_largest_number_stays_within_any_total():
  """Whatever the total rounds to, the last item with a weight is the last to be drawn."""
  logits = np.random.default_rng(0).normal(scale=5, size=(2000, 9)).astype(np.float32)
  logits[:, 7:] = -np.inf
  drawn = row_sampling.draws(
    tf.constant(logits), tf.fill([2000, 1], tf.constant(1 - 2.0**-52, tf.float64))
  )
  assert np.all(drawn.numpy() == 6)
