"""Slates of K distinct candidates that a ranker orders: inclusion, rivals, expected rank weights.

Both stages are Plackett-Luce. Give every item an exponential clock of rate exp(z), z its logit: the
candidates are the first K that ring. Give every candidate a clock of rate exp(g), g its ranker
logit: the order in which these ring is the ranking.

* Inclusion. The probability of being among the first K has no closed form; in its place stands that
  of having rung by the time at which K are expected to have, see `distinct`.
* Rivals. The slate of an item that is a candidate is that item and the first K - 1 others, exactly.
* Rank. If a rings at time u, rival b has rung with probability q_b(u) = 1 - exp(-u exp(g_b - g_a)),
  independently, so the number M of rivals above a has the generating function
  E[x^M] = Π_b (1 - (1 - x) q_b(u)). Weights θ of K ranks are a sum Σ_j c_j x_j^M, so that
    E[θ(1 + M)] = ∫_0^∞ exp(-u) Re Σ_j c_j Π_b (1 - (1 - x_j) q_b(u)) du
  needs no sampled rankings. Eight x_j within 0 and 1 make smooth weights, such as those of DCG;
  all others are made of K points of a circle (a discrete Fourier transform). The integral is the
  trapezoidal rule in log u of `policies`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

RANK_WEIGHTS = ("dcg", "examination", "top_1")
_LOG_TIME_STEP = 0.75  # errs by 3e-5, see `policies`
_HEADROOM = 10.0  # a rival counts as at most exp(10) times as fast as the item
_SMOOTH = 1e-3  # error of smooth weights, relative to the largest


def sample_rivals(logits: tf.Tensor, actions: tf.Tensor, slate_size: int, seed: Any) -> tf.Tensor:
  """The other candidates of a slate that holds a_i: [B, R] int32, R = min(K, N) - 1, all different.

  Args:
    logits: [B, N], z, without gradient. Where fewer than R others are not excluded, a_i itself and
      excluded ones come last.
    actions: [B] catalogue indices.
    slate_size: K.
    seed: [2] integer.
  """
  shape = tf.shape(logits)
  uniform = tf.random.stateless_uniform(shape, seed, dtype=logits.dtype, minval=1e-20)
  order = tf.stop_gradient(logits) - tf.math.log(-tf.math.log(uniform))
  logged = tf.stack([tf.range(shape[0]), tf.cast(actions, tf.int32)], 1)
  order = tf.tensor_scatter_nd_update(order, logged, tf.fill([shape[0]], order.dtype.min))
  return tf.math.top_k(order, tf.minimum(slate_size, shape[1]) - 1).indices


def rank_weights(kind: str, slate_size: int, examination: Any = None) -> np.ndarray:
  """θ [K], the weight of each rank.

  Args:
    kind: "dcg", 1 / log2(1 + rank); "top_1", the first rank alone; "examination", that of the slot.
    slate_size: K.
    examination: probability of each slot to be examined, relative to the first; slots beyond it are
      not shown.
  """
  ranks = np.arange(1, slate_size + 1)
  if kind == "dcg":
    return 1 / np.log2(1 + ranks)
  if kind == "top_1":
    return (ranks == 1).astype(float)
  theta = np.zeros(slate_size)
  shown = np.asarray(examination, float)[:slate_size]
  theta[: len(shown)] = shown
  return theta


def expected_rank_weight(relative: tf.Tensor, theta: np.ndarray) -> tf.Tensor:
  """E[θ(rank of a)] of a slate, exact: [B].

  Args:
    relative: [B, R], ranker logits of the rivals less that of a; -inf for a rival that is none. The
      output is differentiable in them.
    theta: [K], K > R.
  """
  points, coefficients = _generating(theta)
  dtype = kind = relative.dtype
  if np.iscomplexobj(points):
    kind = tf.complex128 if dtype == tf.float64 else tf.complex64
  points, coefficients = (tf.constant(v, kind) for v in (points, coefficients))
  first = -_HEADROOM - math.log(len(theta)) - 5.5
  nodes = np.arange(first, 2.4 + _LOG_TIME_STEP, _LOG_TIME_STEP)
  time = np.exp(nodes)
  density = _LOG_TIME_STEP * time * np.exp(-time)
  density[0] /= 1 - np.exp(-_LOG_TIME_STEP)  # stands for all earlier nodes too
  time, density = (tf.constant(v[:, None], dtype) for v in (time, density))

  @tf.custom_gradient
  def expected(relative):
    rate = time * tf.exp(tf.minimum(relative, _HEADROOM))[:, None]  # [B, nodes, R]
    silent = tf.exp(-rate)
    rung = tf.cast(1 - silent, points.dtype)[:, :, None]
    factors = 1 - (1 - points)[:, None] * rung  # [B, nodes, points, R]
    products = coefficients * tf.reduce_prod(factors, 3)
    total = tf.math.real(tf.reduce_sum(products, 2, keepdims=True))

    def gradient(d_expected):
      others = tf.math.divide_no_nan(products[..., None], factors)
      by_rung = -tf.math.real(tf.reduce_sum((1 - points)[:, None] * others, 2))
      slope = tf.reduce_sum(density * by_rung * rate * silent, 1)
      return d_expected[:, None] * tf.where(relative < _HEADROOM, slope, 0.0)

    return tf.reduce_sum(density * total, [1, 2]), gradient

  return expected(relative)


def _generating(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Points x and coefficients c with θ(1 + m) = Re Σ_j c_j x_j^m for all m < K."""
  size = len(theta)
  if not theta[1:].any():
    return np.zeros(1), theta[:1]
  points = np.exp(-np.geomspace(0.3 / size, 6, 8))
  powers = points ** np.arange(size)[:, None]
  coefficients, *_ = np.linalg.lstsq(powers, theta, rcond=1e-6)
  if np.abs(powers @ coefficients - theta).max() < _SMOOTH * np.abs(theta).max():
    return points, coefficients
  # Within the unit circle no factor of the product vanishes.
  radius = np.exp(-1 / size)
  half = np.arange(size // 2 + 1)  # the others are conjugates
  points = radius * np.exp(2j * np.pi * half / size)
  coefficients = np.fft.fft(theta * radius ** -np.arange(size))[half] / size
  twice = (half > 0) & (2 * half < size)
  return points, coefficients * np.where(twice, 2, 1)
