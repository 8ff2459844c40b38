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
  6.5e-4 for h = 1, 2.8e-5 for h = 0.75.
* Rank: φ needs no more than the distribution of g under p, so the N items fall into bins of width
  Δ in g. A bin keeps its mass and its first moment and reads a function of g as a straight line
  through the middle of the gap between function and chord. That errs by Δ²/16 times a second
  derivative, and those of 1 / (1 + S) are (2s_j² - s_j) / (1 + S) with Σ s_j <= 1: in all, at most
  Δ²/16 where a is read at its own g, 2Δ²/16 where all actions are read from the bins too.

A step costs one scatter of [B, N] into bins and, backwards, one gather: mass and moment travel as
the two parts of the complex number p (1 + i fraction), at the price of one. Bins and nodes are
cheap beside that, so they are chosen for accuracy. Bins are summed in float64: thousands of items
share one, and (K - 1) log φ multiplies what a sum rounds. If all actions are read, a window of bins
covers a spread of 50 in g; rows that spread further take a pass for each window. Largest relative
errors over a stress grid (K from 2 to 100, flat to one-hot p, g from tied to spread over ±50, qbar
at least 1e-6, float32), h = 0.75:

  ===============  ======  ======  ======  ======  ======
  Δ                1/4     1/8     1/16    1/24    1/32
  bins, K = 30     161     321     640     959     1278
  one action       4.3e-3  9.9e-4  2.7e-4  1.4e-4  0.9e-4
  all actions      8.3e-3  2.0e-3  5.1e-4  2.4e-4  1.4e-4
  ===============  ======  ======  ======  ======  ======

`benchmarks/two_stage_policy.py` prints such tables, and times.

Invalid numbers. A logit of -inf means probability zero. A row whose logits hold NaN or +inf, or
whose ranker logits are not all finite, has NaN for every probability and gradient, whether eager,
in a graph or compiled; other rows keep theirs. Items drawn for such a row are arbitrary items of
the catalogue.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage.errors import InputError
from tf_twostage.top_k import top_k

BIN_WIDTH = 1 / 16  # Δ
LOG_TIME_STEP = 0.75  # h
_FINE = 256  # narrow bins in a bin, where there are only masses

# Ranker logits are clipped to at most this far above the action's. An item further above leaves the
# action a probability of exp(-25) = 1e-11 instead of less: log qbar is at least -25 - log K.
HEADROOM = 25.0
# If every item is an action, those within so much of ranker logits are read from the same bins.
WINDOW = 50.0
# Bound on the total that items far below the action, which are not counted, could add to S.
NEGLIGIBLE = 1e-5


_fusing = contextvars.ContextVar("fusing", default=False)


@contextlib.contextmanager
def fusing() -> Iterator[None]:
  """Within it, XLA compiles what `fused` calls."""
  before = _fusing.set(True)
  try:
    yield
  finally:
    _fusing.reset(before)


def fused(function: Callable, *tensors: tf.Tensor) -> Any:
  """A function of tensors, which XLA compiles within `fusing`."""
  if _fusing.get():
    function = tf.function(function, jit_compile=True, autograph=False)
  return function(*tensors)


class SoftmaxPolicy:
  """The generator alone: π = softmax(logits / temperature).

  Args:
    logits: [B, N] floating; -inf excludes an item.
    temperature: above 1 explores more, below 1 less.
  """

  def __init__(self, logits: Any, temperature: float = 1.0):
    if not temperature > 0:
      raise InputError(f"softmax policy: temperature must be positive, got {temperature}")
    self.logits = matrix("logits", logits) / temperature

  def log_prob(self, actions: Any) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B]."""
    logits, actions = self.logits, tf.cast(actions, tf.int32)

    # TensorFlow's sparse cross-entropy compares every item with the label, twice. This gradient
    # takes half its time on CPUs, and less for large catalogues.
    @tf.custom_gradient
    def log_prob(logits):
      p = tf.nn.softmax(logits)

      def gradient(d_log_p):
        return add_at(-d_log_p[:, None] * p, actions, d_log_p)

      return _log_p(logits, p, actions), gradient

    return log_prob(logits)

  def probabilities(self) -> tf.Tensor:
    """π of every action: [B, N], rows sum to 1."""
    return tf.nn.softmax(self.logits)

  def sample(self, seed: Any) -> tf.Tensor:
    """One action a row, [B] int32; the same for the same `seed` (two integers)."""
    return draw(self.logits, 1, seed)[:, 0]

  def top_k(self, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best items of every row: ids and scores, [B, k] each, best first.

    Raises:
      InputError: k is above N.
    """
    _check_k(k, self.logits)
    scores, ids = top_k(self.logits, k)
    return ids, scores

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    # log Σ exp(z) - Σ p z needs no logarithm per item, and shares p with losses in a graph. The
    # largest p is one over the sum. The lower bound changes no p, and keeps products finite.
    p = tf.nn.softmax(self.logits)
    below = tf.maximum(self.logits - tf.reduce_max(self.logits, 1, keepdims=True), -200.0)
    return -tf.math.log(tf.reduce_max(p, 1)) - tf.reduce_sum(p * below, 1)


class FactoredPolicy:
  """`SoftmaxPolicy` of logits that are products of user and item vectors.

  The gradient in the vectors needs products with p alone, no array [B, N] of its own: with d the
  gradient in log p(a_i), those of u_i and v_b are d_i (v_{a_i} - Σ_b p_ib v_b) and, where b is not
  logged, -Σ_i d_i p_ib u_i. Σ_b p_b z_b, which the entropy needs, is u_i · Σ_b p_ib v_b.

  Args:
    users: [B, D] float32.
    items: [N, D] float32, finite.
  """

  def __init__(self, users: tf.Tensor, items: tf.Tensor):
    self.users, self.items = users, items

  def log_prob(self, actions: tf.Tensor) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B], differentiable in both vectors."""

    @tf.custom_gradient
    def log_prob(users, items):
      logits, exponentials, total = self._sums(users, items)

      def gradient(d_log_p):
        scaled = d_log_p[:, None] * users
        mean = tf.matmul(exponentials, items) / total
        d_items = tf.matmul(exponentials, -scaled / total, transpose_a=True)
        d_items = tf.tensor_scatter_nd_add(d_items, actions[:, None], scaled)
        return d_log_p[:, None] * (tf.gather(items, actions) - mean), d_items

      below = tf.gather(logits, actions, batch_dims=1) - tf.reduce_max(logits, 1)
      return below - tf.math.log(total)[:, 0], gradient

    return log_prob(self.users, self.items)

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    logits, exponentials, total = self._sums(self.users, self.items)
    mean = tf.matmul(exponentials, self.items) / total
    log_total = tf.reduce_max(logits, 1) + tf.math.log(total)[:, 0]
    return log_total - tf.reduce_sum(self.users * mean, 1)

  @staticmethod
  def _sums(users: tf.Tensor, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Logits, the exponentials of what they lie below the largest, and their sum, [B, 1]."""
    logits = tf.matmul(users, items, transpose_b=True)
    exponentials = tf.exp(logits - tf.reduce_max(logits, 1, keepdims=True))
    return logits, exponentials, tf.reduce_sum(exponentials, 1, keepdims=True)


class TwoStagePolicy:
  """Generator and ranker together: K candidates by softmax(logits), one of them by the ranker.

  Candidates are drawn with replacement; an item drawn twice competes twice. Gradients reach the
  logits, never the ranker logits.

  Args:
    logits: [B, N] floating, the generator's; -inf excludes an item.
    ranker_logits: [B, N] floating, finite.
    slate_size: K.

  References:
    [Ma20] Ma et al., Off-policy Learning in Two-stage Recommender Systems, WWW 2020, section 4:
      the policy, there estimated by sampled slates of distinct items.
  """

  def __init__(self, logits: Any, ranker_logits: Any, slate_size: int):
    self.logits, self.ranker_logits = two_stages(logits, ranker_logits, slate_size)
    self.slate_size = slate_size

  def log_prob(self, actions: Any) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B]."""
    log_p, log_qbar = two_stage_log_prob(self.logits, self.ranker_logits, actions, self.slate_size)
    return np.log(self.slate_size) + log_p + log_qbar

  def ranker_probability(self, actions: Any) -> tf.Tensor:
    """qbar(a_i), the ranker's expected probability of a_i once it is a candidate: [B] to [B]."""
    return tf.exp(two_stage_log_prob(self.logits, self.ranker_logits, actions, self.slate_size)[1])

  def probabilities(self) -> tf.Tensor:
    """π of every action: [B, N], rows sum to 1 within the quadrature's error."""
    return two_stage_probabilities(self.logits, self.ranker_logits, self.slate_size)

  def sample(self, seed: Any) -> tf.Tensor:
    """The item shown in every row, [B] int32; `log_prob` gives its propensity.

    Args:
      seed: two integers; the same seed shows the same items.
    """
    seeds = tf.random.split(seed, 2)
    slates = draw(self.logits, self.slate_size, seeds[0])
    scores = tf.gather(self.ranker_logits, slates, batch_dims=1)
    shown = draw(scores, 1, seeds[1])
    return tf.gather(slates, shown, batch_dims=1)[:, 0]

  def top_k(self, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The generator's best K items in the ranker's order, cut at k.

    Returns:
      ids and ranker logits, [B, k] each, best first. Excluded items come last, at -inf.

    Raises:
      InputError: k is above K or N.
    """
    _check_k(k, self.logits)
    if k > self.slate_size:
      raise InputError(
        f"two-stage policy: k is {k}, above the slate_size {self.slate_size}; raise slate_size"
      )
    items = self.logits.shape[1]
    size = self.slate_size if items is None else min(self.slate_size, items)
    generator, candidates = top_k(self.logits, size)
    scores = tf.gather(self.ranker_logits, candidates, batch_dims=1)
    scores, order = tf.math.top_k(tf.where(generator > -np.inf, scores, -np.inf), k)
    return tf.gather(candidates, order, batch_dims=1), scores

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    return entropy(self.probabilities())


def restricted(logits: tf.Tensor, available: tf.Tensor | None) -> tf.Tensor:
  """Logits [B, N] with -inf where an item is not available, [B, N] bool; None: all are."""
  if available is None:
    return logits
  return tf.where(available, logits, tf.constant(-np.inf, logits.dtype))


def two_stage_log_prob(
  logits: Any, ranker_logits: Any, actions: Any, slate_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """log p(a_i) and log qbar(a_i); with log K they sum to log π(a_i). The hot path of training.

  Compiles under XLA: `tf.function(two_stage_log_prob, jit_compile=True)` about halves its time, for
  a second or two of compilation per shape.

  Args:
    logits: [B, N] floating, the generator's; both outputs are differentiable in them.
    ranker_logits: [B, N] floating, finite. They receive no gradient.
    actions: [B] integer, catalogue indices.
    slate_size: K, the action counted.

  Returns:
    log p(a_i) and log qbar(a_i), [B] each. Where qbar(a_i) is at least 1e-6 its relative error is
    below 3e-4 (measured up to N = 100,000 and K = 1,000, at any spread of the ranker logits).
  """
  logits, ranker_logits = two_stages(logits, ranker_logits, slate_size)
  actions = tf.cast(actions, tf.int32)
  if slate_size == 1:
    log_p = SoftmaxPolicy(logits).log_prob(actions)
    return log_p, tf.zeros_like(log_p)
  others = slate_size - 1
  reference = tf.gather(ranker_logits, actions, batch_dims=1)
  race = _Race.for_action(slate_size)

  @tf.custom_gradient
  def log_probs(logits):
    p = tf.nn.softmax(logits)
    log_p = _log_p(logits, p, actions)
    bins = _Bins.fill(p, ranker_logits, reference, race)
    log_silent = bins.log_survival(race)
    # At each node, the action's clock rings while the others are silent.
    log_terms = race.log_density + others * log_silent
    log_qbar = tf.reduce_logsumexp(log_terms, 1)

    def gradient(d_log_p, d_log_qbar):
      # ∂ log qbar / ∂p(b) is a function of g_b alone, and its mean under p is K - 1.
      by_node = tf.exp(log_terms - log_silent - log_qbar[:, None])
      value, slope = race.survival.to_bins(others * d_log_qbar[:, None] * by_node)
      mean = d_log_p + others * d_log_qbar  # under p, of all that p(b) multiplies
      d_logits = bins.read(value - mean[:, None], slope)
      return add_at(d_logits, actions, d_log_p)

    return (log_p, log_qbar), gradient

  return log_probs(logits)


def two_stage_propensities(
  p: tf.Tensor, ranker_logits: tf.Tensor, actions: tf.Tensor, slate_size: int
) -> tf.Tensor:
  """π(a_i) as in `two_stage_log_prob`, without gradient; for few rows of very many items.

  A histogram of masses alone, in bins a 256th as wide, is one pass, and gives masses and moments of
  the usual bins: an item is off its place by at most 1.2e-4 in ranker logits.

  Args:
    p: [B, N] float32, the generator's probabilities.
    ranker_logits: [B, N] float32, finite.
    actions: [B] integer, catalogue indices.
    slate_size: K, the action counted.

  Returns:
    [B].
  """
  own = tf.gather(p, actions, batch_dims=1)
  if slate_size == 1:
    return own
  race = _Race.for_action(slate_size)
  num_bins, scale = len(race.survival.value), _FINE / BIN_WIDTH
  lowest = (tf.gather(ranker_logits, actions, batch_dims=1) + race.low) * scale
  place = tf.clip_by_value(ranker_logits * scale - lowest[:, None], 0.0, num_bins * _FINE - 1.0)
  fine = tf.raw_ops.DenseBincount(
    input=tf.cast(place, tf.int32), size=num_bins * _FINE, weights=p, binary_output=False
  )
  fine = tf.cast(tf.reshape(fine, [-1, num_bins, _FINE]), tf.float64)
  fraction = tf.constant((np.arange(_FINE) + 0.5) / _FINE)
  log_silent = race.log_survival(tf.reduce_sum(fine, 2), tf.linalg.matvec(fine, fraction))
  log_terms = race.log_density + (slate_size - 1) * log_silent
  return slate_size * own * tf.exp(tf.cast(tf.reduce_logsumexp(log_terms, 1), own.dtype))


def expected_slate_counts(
  logits: Any, ranker_logits: Any, actions: Any, slate_size: int, scale: float = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
  """Expected counts of a slate with a_i, weighted by the ranker probability: E[q n_b] for all b.

  The slate is a_i and K - 1 draws from softmax(logits), with repeats; n_b counts the draws of b
  and q is the ranker's softmax over the slate, read at a_i. E[q n_b] = p(b) ∂qbar / ∂p(b).

  Args:
    logits: [B, N] floating.
    ranker_logits: [B, N] floating, finite.
    actions: [B] integer, catalogue indices.
    slate_size: K, the action counted.
    scale: multiplies the counts.

  Returns:
    scale E[q n_b], [B, N], and qbar = E[q], [B], both without gradient.
  """
  logits, ranker_logits = two_stages(tf.stop_gradient(logits), ranker_logits, slate_size)
  if slate_size == 1:
    return tf.zeros_like(logits), tf.ones_like(logits[:, 0])
  others = slate_size - 1
  reference = tf.gather(ranker_logits, actions, batch_dims=1)
  race = _Race.for_action(slate_size)
  bins = _Bins.fill(tf.nn.softmax(logits), ranker_logits, reference, race)
  log_silent = bins.log_survival(race)
  log_terms = race.log_density + others * log_silent
  by_node = scale * others * tf.exp(log_terms - log_silent)
  return bins.read(*race.survival.to_bins(by_node)), tf.exp(tf.reduce_logsumexp(log_terms, 1))


def two_stage_probabilities(logits: Any, ranker_logits: Any, slate_size: int) -> tf.Tensor:
  """π(a) = K p(a) qbar(a) of every action.

  Args:
    logits: [B, N] floating, the generator's; the output is differentiable in them.
    ranker_logits: [B, N] floating, finite. They receive no gradient. Every 50 by which those of a
      row spread cost another pass.
    slate_size: K.

  Returns:
    [B, N]. Where qbar(a) is at least 1e-6 the relative error is below 6e-4, and rows sum to 1
    within 1e-4 (measured as for `two_stage_log_prob`).
  """
  logits, ranker_logits = two_stages(logits, ranker_logits, slate_size)
  if slate_size == 1:
    return SoftmaxPolicy(logits).probabilities()
  others = slate_size - 1
  race = _Race.for_catalogue(slate_size)
  best = tf.reduce_max(ranker_logits, 1)

  @tf.custom_gradient
  def probabilities(logits):
    # XLA cannot compile a loop that a persistent tape records.
    p = tf.nn.softmax(tf.stop_gradient(logits))

    def silence(reference: tf.Tensor) -> tuple[_Bins, tf.Tensor]:
      bins = _Bins.fill(p, ranker_logits, reference, race)
      return bins, bins.log_survival(race)

    def shown_by(bins, log_silent):
      return bins.read(*race.density.to_bins(slate_size * tf.exp(others * log_silent)))

    top = silence(best)
    shown = below_window(
      ranker_logits,
      best,
      shown_by(*top),
      lambda shown, best, inside: tf.where(inside, shown_by(*silence(best)), shown),
    )

    def gradient(d_shown):
      def through_silence(bins, log_silent, inside):
        ringing = race.density.to_nodes(*bins.moments(tf.where(inside, d_shown, 0.0)))
        silent = slate_size * others * tf.exp((others - 1) * log_silent)
        return bins.read(*race.survival.to_bins(silent * tf.cast(ringing, p.dtype)))

      # Through p(a), and through the silence of the others while a rings.
      inside = ranker_logits >= best[:, None] - WINDOW
      d_log_p = below_window(
        ranker_logits,
        best,
        d_shown * shown + through_silence(*top, inside),
        lambda total, best, inside: total + through_silence(*silence(best), inside),
      )
      return d_log_p - p * tf.reduce_sum(d_log_p, 1, keepdims=True)

    return shown, gradient

  return probabilities(logits)


def below_window(
  ranker_logits: tf.Tensor, best: tf.Tensor, total: tf.Tensor, step: Callable
) -> tf.Tensor:
  """Folds `step` over the windows of ranker logits below the one of the best item.

  A window begins at the best item that is in no earlier one, so that gaps cost nothing.

  Args:
    ranker_logits: [B, N].
    best: [B], their maximum.
    total: [B, N], what the fold starts from.
    step: from the total, the window's best ranker logit [B], and whether an item is inside the
      window [B, N], to the next total.
  """

  def add_window(floor, total):
    left = ranker_logits < floor
    best = tf.reduce_max(tf.where(left, ranker_logits, -np.inf), 1)
    floor = best[:, None] - WINDOW
    return floor, step(total, best, left & (ranker_logits >= floor))

  lowest = tf.reduce_min(ranker_logits, 1, keepdims=True)
  return tf.while_loop(
    lambda floor, _: tf.reduce_any(lowest < floor), add_window, (best[:, None] - WINDOW, total)
  )[1]


def is_finite(ranker_logits: tf.Tensor) -> tf.Tensor:
  """Whether all of a row are finite and apart by a finite number: [B, N] to [B]."""
  return tf.math.is_finite(tf.reduce_max(ranker_logits, 1) - tf.reduce_min(ranker_logits, 1))


class _Lines(NamedTuple):
  """A function of g + y as a straight line per bin of g: value and slope, [bins, nodes] each."""

  value: np.ndarray
  slope: np.ndarray

  @classmethod
  def through(cls, function: Callable, edges: np.ndarray, nodes: np.ndarray) -> _Lines:
    left, middle, right = (
      function(edges[:, None] + shift * BIN_WIDTH + nodes) for shift in (0.0, 0.5, 1.0)
    )
    gap = (left + right) / 2 - middle
    return cls(np.maximum(left - gap / 2, 0.0), right - left)

  def to_nodes(self, mass: tf.Tensor, moment: tf.Tensor) -> tf.Tensor:
    """The function summed over the bins' contents: float64 [B, bins] twice to [B, nodes]."""
    return tf.matmul(mass, self.value) + tf.matmul(moment, self.slope)

  def to_bins(self, by_node: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The function summed over nodes, as lines in g: [B, nodes] to value and slope, [B, bins]."""
    dtype = by_node.dtype.as_numpy_dtype
    return tuple(tf.matmul(by_node, table.T.astype(dtype)) for table in self)


class _Race(NamedTuple):
  """The race of the clocks, tabulated: bins of g (relative to a reference) by nodes of y.

  Attributes:
    low: lower edge of the first bin.
    survival: exp(-e^v), v = g + y: a clock of rate e^g is silent until time e^y.
    density: e^v exp(-e^v), times the quadrature's weights: it rings at that time.
    log_density: [nodes], log of the density at g = 0.
  """

  low: float
  survival: _Lines
  density: _Lines
  log_density: np.ndarray

  def log_survival(self, mass: tf.Tensor, moment: tf.Tensor) -> tf.Tensor:
    """log φ at the nodes, of the contents of bins: float64 [B, bins] twice to [B, nodes]."""
    total = tf.reduce_sum(mass, 1, keepdims=True)  # 1 up to rounding
    return tf.math.log(tf.maximum(self.survival.to_nodes(mass, moment) / total, 1e-30))

  @classmethod
  @functools.lru_cache
  def for_action(cls, slate_size: int) -> _Race:
    """Ranker logits relative to that of one action."""
    return cls.tabulate(np.log(NEGLIGIBLE / (slate_size - 1)), HEADROOM, 0.0, slate_size)

  @classmethod
  @functools.lru_cache
  def for_catalogue(cls, slate_size: int) -> _Race:
    """Ranker logits relative to the best of a window, in which every item is an action."""
    low = np.log(NEGLIGIBLE / (slate_size - 1))
    return cls.tabulate(low - WINDOW, HEADROOM, -WINDOW, slate_size)

  @classmethod
  def tabulate(cls, low: float, high: float, slowest: float, slate_size: int) -> _Race:
    """Bins from `low` to `high`; nodes until the clock of an action at `slowest` has rung."""
    edges = np.arange(low, high + BIN_WIDTH, BIN_WIDTH)
    first = -high - np.log(slate_size) - 5.5  # K clocks at `high` are silent but for 0.4%
    last = 2.4 - slowest  # that action is still silent with probability 2e-5
    nodes = np.arange(first, last + LOG_TIME_STEP, LOG_TIME_STEP)
    weights = np.full(nodes.shape, LOG_TIME_STEP)
    weights[0] /= 1 - np.exp(-LOG_TIME_STEP)  # stands for all earlier nodes too

    def survival(v):
      return np.exp(-np.exp(v))

    def density(v):
      return weights * np.exp(v - np.exp(v))

    return cls(
      low,
      _Lines.through(survival, edges, nodes),
      _Lines.through(density, edges, nodes),
      np.log(weights) + nodes - np.exp(nodes),
    )


class _Bins(NamedTuple):
  """The items of every row in the bins of a race.

  Attributes:
    weights: [B, N] complex, p(b) (1 + i fraction of the bin that lies below b).
    index: [B, N] int32, row * num_bins + bin.
    num_bins: bins a row.
  """

  weights: tf.Tensor
  index: tf.Tensor
  num_bins: int

  @classmethod
  def fill(cls, p: tf.Tensor, ranker_logits: tf.Tensor, reference: tf.Tensor, race: _Race) -> _Bins:
    num_bins = len(race.survival.value)
    # Clipping below would hide infinite ranker logits.
    reference = tf.where(is_finite(ranker_logits), reference, np.nan)
    lowest, highest = race.low, race.low + (num_bins - 1) * BIN_WIDTH
    relative = tf.clip_by_value(ranker_logits - reference[:, None], lowest, highest)
    position = (relative - lowest) * (1 / BIN_WIDTH)
    below = tf.floor(position)
    first = num_bins * tf.range(tf.shape(p)[0])[:, None]
    # NaN becomes a negative integer on some devices.
    index = tf.maximum(tf.cast(below, tf.int32), 0) + first
    return cls(tf.complex(p, p * (position - below)), index, num_bins)

  def moments(self, factor: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """Mass and first moment of every bin, of p or of p times `factor` [B, N].

    In float64, [B, bins] each: thousands of items of one bin add up, and log φ, times K - 1, shows
    what they round.
    """
    weights = self.weights if factor is None else self.weights * tf.cast(factor, self.weights.dtype)
    rows = tf.shape(self.index)[0]
    sums = tf.math.unsorted_segment_sum(
      tf.cast(weights, tf.complex128), self.index, rows * self.num_bins
    )
    sums = tf.reshape(sums, [rows, self.num_bins])
    return tf.math.real(sums), tf.math.imag(sums)

  def log_survival(self, race: _Race) -> tf.Tensor:
    """log φ at the nodes: [B, nodes]."""
    return tf.cast(race.log_survival(*self.moments()), tf.math.real(self.weights).dtype)

  def read(self, value: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """p(b) times a function of g_b given as lines, [B, bins] each: [B, N]. Adjoint of `moments`."""
    table = tf.reshape(tf.complex(value, -slope), [-1])
    return tf.math.real(self.weights * tf.gather_nd(table, self.index[..., None]))


def matrix(name: str, values: Any) -> tf.Tensor:
  """[rows, items] floating; half precision is cast up."""
  values = tf.convert_to_tensor(values)
  if not (values.dtype.is_floating and values.shape.rank in (2, None)):
    raise InputError(
      f"policy: {name} must be [B, N] floating, got {values.shape} {values.dtype.name}"
    )
  return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


def two_stages(logits: Any, ranker_logits: Any, slate_size: int) -> tuple[tf.Tensor, tf.Tensor]:
  logits = matrix("logits", logits)
  ranker_logits = tf.cast(matrix("ranker_logits", ranker_logits), logits.dtype)
  if not logits.shape.is_compatible_with(ranker_logits.shape):
    raise InputError(
      f"two-stage policy: logits {logits.shape} and ranker_logits {ranker_logits.shape} must have"
      " one shape, [B, N]: score the whole catalogue with both"
    )
  if slate_size < 1:
    raise InputError(f"two-stage policy: slate_size must be at least 1, got {slate_size}")
  return logits, tf.stop_gradient(ranker_logits)


def _check_k(k: int, logits: tf.Tensor) -> None:
  """Refuses more items than there are; an unknown N passes."""
  items = logits.shape[1]
  if items is not None and k > items:
    raise InputError(f"policy: k is {k}, but the catalogue has {items} items: lower k")


def _log_p(logits: tf.Tensor, p: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """log p(a_i), [B], of p = softmax(logits), [B, N]."""
  # The largest probability is one over the softmax's denominator.
  log_largest = tf.math.log(tf.reduce_max(p, 1))
  return tf.gather(logits, actions, batch_dims=1) - tf.reduce_max(logits, 1) + log_largest


def add_at(values: tf.Tensor, actions: tf.Tensor, addend: tf.Tensor) -> tf.Tensor:
  """`values` [B, N] with `addend` [B] added at each row's action."""
  logged = tf.stack([tf.range(tf.size(actions)), actions], 1)
  return tf.tensor_scatter_nd_add(values, logged, addend)


def draw(logits: tf.Tensor, count: int, seed: Any) -> tf.Tensor:
  """`count` draws a row from softmax(logits), with replacement: [B, count] int32."""
  draws = tf.random.stateless_categorical(logits, count, seed, dtype=tf.int32)
  return tf.minimum(draws, tf.shape(logits)[1] - 1)  # from NaN, it draws N


def entropy(probabilities: tf.Tensor) -> tf.Tensor:
  return -tf.reduce_sum(tf.math.xlogy(probabilities, probabilities), 1)
