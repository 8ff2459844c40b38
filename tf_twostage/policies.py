"""Policies over the catalogue: the generator alone, and the two stages together.

The *two-stage policy* draws a slate of K candidates from the generator, with replacement, and
shows one of them by the softmax of the ranker logits g over the slate. That softmax is a race:
give every candidate an exponential clock of rate exp(g); the first to ring is shown. With
p = softmax(logits), the clock of one drawn candidate is silent until time t with probability

  φ(t) = Σ_b p(b) exp(-t exp(g_b)),

so a candidate a beats the K - 1 others, and the policy shows a, with probability

  qbar(a) = ∫ exp(g_a) exp(-t exp(g_a)) φ(t)^(K-1) dt,      π(a) = K p(a) qbar(a).

qbar(a) = E[1 / (1 + S)], S = Σ_j exp(g_j - g_a) over the K - 1 others, and π sums to 1 because its
integrands add up to -d(φ^K)/dt. Nothing is sampled. Two approximations are made, and each bounds
the *relative* error of qbar(a) whatever p, g and K are:

* Time: the trapezoidal rule with step h in y = log t. Each value of S contributes a Gumbel density
  in y, whose Fourier transform is Γ(1 + iω), so that the rule errs by at most 2 |Γ(1 + 2πi/h)|:
  6.5e-4 for h = 1, 6.2e-5 for h = 0.8, 1.1e-5 for h = 0.7.
* Rank: φ needs no more than the distribution of g under p, so the N items fall into bins of width
  Δ in g. A bin keeps its mass and its first moment and reads a function of g as a straight line
  through the middle of the gap between function and chord. That errs by Δ²/16 times a second
  derivative, and those of 1 / (1 + S) are (2s_j² - s_j) / (1 + S) with Σ s_j <= 1: in all, at most
  Δ²/16 where a is read at its own g, 2Δ²/16 where all actions are read from the bins too.

A step costs one scatter of [B, N] into bins and, backwards, one gather: mass and moment travel as
the two parts of the complex number p (1 + i fraction), at the price of one. Bins and nodes are
small beside that. `benchmarks/two_stage_policy.py` prints time and error for other Δ and h.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError

BIN_WIDTH = 1 / 24  # Δ
LOG_TIME_STEP = 0.75  # h

# Ranker logits count in full up to this far above the action's; what is further above wins
# exp(-25) as surely. So qbar is exact where it is above 1e-10, and log qbar is at least about -30.
_HEADROOM = 25.0
# Across the whole catalogue they count down to this far below the best.
_SPREAD = 100.0
# What all items together that are further below may add to S.
_NEGLIGIBLE = 1e-5


class SoftmaxPolicy:
  """The generator alone: π = softmax(logits / temperature).

  Args:
    logits: [B, N] floating; -inf excludes an item.
    temperature: above 1 explores more, below 1 less.
  """

  def __init__(self, logits: Any, temperature: float = 1.0):
    if not temperature > 0:
      raise InputError(f"softmax policy: temperature must be positive, got {temperature}")
    self.logits = _matrix("logits", logits) / temperature

  def log_prob(self, actions: Any) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B]."""
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(actions, self.logits)

  def probabilities(self) -> tf.Tensor:
    """π of every action: [B, N], rows sum to 1."""
    return tf.nn.softmax(self.logits)

  def sample(self, seed: Any) -> tf.Tensor:
    """One action a row, [B] int32; the same for the same `seed` (two integers)."""
    return _draw(self.logits, 1, seed)[:, 0]

  def top_k(self, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best items of every row: ids and scores, [B, k] each, best first."""
    scores, ids = tf.math.top_k(self.logits, k)
    return ids, scores

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    return _entropy(self.probabilities())


class TwoStagePolicy:
  """Generator and ranker together: K candidates by softmax(logits), one of them by the ranker.

  Candidates are drawn with replacement and repeats compete as such (a multiset). Gradients reach
  the logits, never the ranker logits.

  Args:
    logits: [B, N] floating, the generator's; -inf excludes an item.
    ranker_logits: [B, N] floating, finite.
    slate_size: K.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, section 4:
      the policy, there estimated by sampled slates of distinct items.
  """

  def __init__(self, logits: Any, ranker_logits: Any, slate_size: int):
    self.logits, self.ranker_logits = _two_stages(logits, ranker_logits, slate_size)
    self.slate_size = slate_size

  def log_prob(self, actions: Any) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B]."""
    log_p, log_share = two_stage_log_prob(
      self.logits, self.ranker_logits, actions, self.slate_size
    )
    return np.log(self.slate_size) + log_p + log_share

  def ranker_share(self, actions: Any) -> tf.Tensor:
    """qbar(a_i), the ranker's expected probability of a_i once it is a candidate: [B] to [B]."""
    return tf.exp(
      two_stage_log_prob(self.logits, self.ranker_logits, actions, self.slate_size)[1]
    )

  def probabilities(self) -> tf.Tensor:
    """π of every action: [B, N], rows sum to 1 within the quadrature's error."""
    return two_stage_probabilities(self.logits, self.ranker_logits, self.slate_size)

  def sample(self, seed: Any) -> tf.Tensor:
    """The item shown in every row, [B] int32, whose propensity `log_prob` tells.

    Args:
      seed: two integers; the same seed shows the same items.
    """
    seeds = tf.random.split(seed, 2)
    slates = _draw(self.logits, self.slate_size, seeds[0])
    scores = tf.gather(self.ranker_logits, slates, batch_dims=1)
    shown = _draw(scores, 1, seeds[1])
    return tf.gather(slates, shown, batch_dims=1)[:, 0]

  def top_k(self, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The generator's best K items in the ranker's order, cut at k.

    Returns:
      ids and ranker logits, [B, k] each, best first. Excluded items come last, at -inf.

    Raises:
      InputError: k is above K.
    """
    if k > self.slate_size:
      raise InputError(f"two-stage policy: top {k} of a slate of {self.slate_size}; raise the latter")
    items = self.logits.shape[1]
    size = self.slate_size if items is None else min(self.slate_size, items)
    generator, candidates = tf.math.top_k(self.logits, size)
    scores = tf.gather(self.ranker_logits, candidates, batch_dims=1)
    scores, order = tf.math.top_k(tf.where(generator > -np.inf, scores, -np.inf), k)
    return tf.gather(candidates, order, batch_dims=1), scores

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    return _entropy(self.probabilities())


def two_stage_log_prob(
  logits: Any, ranker_logits: Any, actions: Any, slate_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """log p(a_i) and log qbar(a_i), whose sum and log K are log π(a_i): the hot path of training.

  Compiles under XLA: `tf.function(..., jit_compile=True)` around it about halves its time, for a
  second or two of compilation per shape.

  Args:
    logits: [B, N] floating, the generator's. They receive the exact gradient of both outputs.
    ranker_logits: [B, N] floating, finite. They receive no gradient.
    actions: [B] integer, catalogue indices.
    slate_size: K, a_i counted.

  Returns:
    log p(a_i) and log qbar(a_i), [B] each. qbar(a_i) = E[1 / (1 + S)] over K - 1 draws from p, with
    a relative error below 2e-4 where it is at least 1e-6.
  """
  logits, ranker_logits = _two_stages(logits, ranker_logits, slate_size)
  actions = tf.cast(actions, tf.int32)
  if slate_size == 1:
    log_p = SoftmaxPolicy(logits).log_prob(actions)
    return log_p, tf.zeros_like(log_p)
  low = np.log(_NEGLIGIBLE / (slate_size - 1))
  race = _Race.between(low, _HEADROOM, slate_size)
  at_action = functools.partial(tf.gather, indices=actions, batch_dims=1)

  @tf.custom_gradient
  def log_p_and_share(logits):
    p = tf.nn.softmax(logits)
    # The largest probability is exactly one over the softmax's denominator.
    log_p = at_action(logits) - tf.reduce_max(logits, 1) + tf.math.log(tf.reduce_max(p, 1))
    bins = _Bins.of(p, ranker_logits, at_action(ranker_logits), race)
    log_survival = bins.log_survival(race)
    # Node by node: the action's clock rings, the K - 1 others are silent.
    log_terms = race.log_density + (slate_size - 1) * log_survival
    log_share = tf.reduce_logsumexp(log_terms, 1)

    def gradient(d_log_p, d_log_share):
      # ∂ log qbar / ∂p(b) is a function of g_b alone; p times it sums to K - 1 over b.
      by_node = d_log_share[:, None] * tf.exp(log_terms - log_survival - log_share[:, None])
      surplus = d_log_p / (slate_size - 1) + d_log_share
      d_logits = (slate_size - 1) * bins.read(race.survival, by_node, -surplus)
      logged = tf.stack([tf.range(tf.size(actions)), actions], 1)
      return tf.tensor_scatter_nd_add(d_logits, logged, d_log_p)

    return (log_p, log_share), gradient

  return log_p_and_share(logits)


def two_stage_probabilities(logits: Any, ranker_logits: Any, slate_size: int) -> tf.Tensor:
  """π(a) = K p(a) qbar(a) of every action.

  Args:
    logits: [B, N] floating, the generator's. They receive the exact gradient.
    ranker_logits: [B, N] floating, finite; what is 100 below a row's best counts as 100 below. They
      receive no gradient.
    slate_size: K.

  Returns:
    [B, N], with a relative error below 4e-4 where qbar(a) is at least 1e-6.
  """
  logits, ranker_logits = _two_stages(logits, ranker_logits, slate_size)
  if slate_size == 1:
    return SoftmaxPolicy(logits).probabilities()
  race = _Race.between(-_SPREAD, 0.0, slate_size)

  @tf.custom_gradient
  def probabilities(logits):
    p = tf.nn.softmax(logits)
    bins = _Bins.of(p, ranker_logits, tf.reduce_max(ranker_logits, 1), race)
    log_survival = bins.log_survival(race)
    shown = slate_size * bins.read(race.density, tf.exp((slate_size - 1) * log_survival))

    def gradient(d_shown):
      # Through p(a) itself, and through the clocks of the others at each node.
      ringing = slate_size * bins.weighted(d_shown).at_nodes(race.density)
      silent = (slate_size - 1) * tf.exp((slate_size - 2) * log_survival)
      d_log = d_shown * shown + bins.read(race.survival, silent * ringing)
      return d_log - p * tf.reduce_sum(d_log, 1, keepdims=True)

    return shown, gradient

  return probabilities(logits)


class _Lines(NamedTuple):
  """A function of (g, y) as a straight line per bin of g: value and slope, [bins, nodes] each."""

  value: np.ndarray
  slope: np.ndarray

  @classmethod
  def through(cls, function: Callable, edges: np.ndarray, nodes: np.ndarray) -> _Lines:
    left, middle, right = (
      function(edges[:, None] + shift * BIN_WIDTH + nodes) for shift in (0.0, 0.5, 1.0)
    )
    gap = (left + right) / 2 - middle
    return cls(np.maximum(left - gap / 2, 0.0), right - left)


@dataclasses.dataclass(frozen=True, eq=False)
class _Race:
  """The race's tables: bins of ranker logits (relative to a reference) by nodes of log time.

  Attributes:
    low: the lower edge of the first bin.
    survival: exp(-e^v), v = g + y: a clock of rate e^g is silent until time e^y.
    density: h e^v exp(-e^v): it rings then, per node.
    log_density: [nodes], the log of the density at g = 0.
  """

  low: float
  survival: _Lines
  density: _Lines
  log_density: np.ndarray

  @property
  def num_bins(self) -> int:
    return len(self.survival.value)

  @classmethod
  @functools.lru_cache
  def between(cls, low: float, high: float, slate_size: int) -> _Race:
    """Tables for ranker logits in [low, high].

    Nodes reach from where no clock rings to where the slowest one that matters has rung: the
    action's, at 0, or in a catalogue-wide race the one at `low`.
    """
    edges = np.arange(low, high + BIN_WIDTH, BIN_WIDTH)
    first = -high - np.log(slate_size) - 3.5
    last = 2.4 - (low if high == 0.0 else 0.0)
    nodes = np.arange(first, last + LOG_TIME_STEP, LOG_TIME_STEP)
    weights = np.full(nodes.shape, LOG_TIME_STEP)
    weights[0] /= 1 - np.exp(-LOG_TIME_STEP)  # and all nodes before it, a geometric series

    def density(v):
      return weights * np.exp(v - np.exp(v))

    return cls(
      low,
      _Lines.through(lambda v: np.exp(-np.exp(v)), edges, nodes),
      _Lines.through(density, edges, nodes),
      np.log(weights) + nodes - np.exp(nodes),
    )
