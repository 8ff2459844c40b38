"""The two-stage policy on slates without repeats: distinct candidates, one of them shown.

The generator gives item b an exponential clock of rate exp(z_b). The first K clocks to ring are a
Plackett-Luce slate. Here the time t is fixed instead, such that K clocks are expected to have rung:

  Σ_b pi_b = K,      pi_b = 1 - exp(-x_b),      x_b = t exp(z_b).

Items are then in the slate independently, with the inclusion probabilities pi_b, and none is in it
twice. Their number varies around K; a slate without items is drawn again. The ranker's softmax over
the slate is a race, too (see `policies`): with W_b = exp(g_b - g_a) the policy shows a with
probability

  π(a) = pi_a qbar(a),
  qbar(a) = ∫ e^{-u} Π_{b != a} (1 - pi_b (1 - exp(-u W_b))) du / (1 - exp(-Σ_b x_b)).

Nothing is sampled. The integral is a trapezoidal rule in log u, as in `policies`. The logarithm of
the product is a sum over items:

* Items with a pi above 1/4, of which there are fewer than 4K, count one by one.
* The others fall into bins of width 1/64 in g. There log(1 - pi q) is read as c1(q) pi + c2(q) pi²,
  fitted on [0, 1/4], so that a bin keeps its sums of pi and pi².

The gradient of t is that of the implicit function Σ_b pi_b = K.

References:
  Yellott, The Relationship between Luce's Choice Axiom, Thurstone's Theory of Comparative Judgment,
    and the Double Exponential Distribution, Journal of Mathematical Psychology 15, 1977: clocks.
  Hajek, Asymptotic Theory of Rejective Sampling with Varying Probabilities from a Finite
    Population, Annals of Mathematical Statistics 35, 1964: inclusion with an expected size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_twostage import policies
from tf_twostage.policies import HEADROOM, LOG_TIME_STEP, NEGLIGIBLE, WINDOW

_PER_UNIT = 64  # bins in a unit of g
_BINNED = 1 / 4  # largest pi of an item that may fall into a bin
_FEW = 64  # items of a catalogue that all count one by one
_CERTAIN = 60.0  # x of an item that is in every slate, and the largest rate of a clock that counts
_LOG_CERTAIN, _LOG_2 = np.log(_CERTAIN), np.log(2)
_STEPS = 60  # towards log t, at most
_NEAR = 0.05  # the last step; a tenth of its cube is left
_GROUPS = 16  # times K: groups of items, which find where to start
_FEWEST = 256  # of these groups
_SMALL = 1e-3  # x up to which log(pi / x) is -x / 2


class DistinctPolicy:
  """Generator and ranker together, on slates of distinct items; K of them are expected.

  Gradients reach the logits, never the ranker logits.

  Args:
    logits: [B, N] floating, the generator's; -inf excludes an item.
    ranker_logits: [B, N] floating, finite.
    slate_size: K.
  """

  def __init__(self, logits: Any, ranker_logits: Any, slate_size: int):
    self.logits, self.ranker_logits = policies.two_stages(logits, ranker_logits, slate_size)
    self.slate_size = slate_size

  def log_prob(self, actions: Any) -> tf.Tensor:
    """log π(a_i) for one action a row: [B] to [B]."""
    return tf.add(*distinct_log_prob(self.logits, self.ranker_logits, actions, self.slate_size))

  def ranker_probability(self, actions: Any) -> tf.Tensor:
    """qbar(a_i), the ranker's expected probability of a_i once it is a candidate: [B] to [B]."""
    return tf.exp(distinct_log_prob(self.logits, self.ranker_logits, actions, self.slate_size)[1])

  def probabilities(self) -> tf.Tensor:
    """π of every action: [B, N], rows sum to 1 within the errors of the approximations."""
    return distinct_probabilities(self.logits, self.ranker_logits, self.slate_size)

  def inclusion(self) -> tf.Tensor:
    """The probability that a slate has the item, for every item: [B, N], rows sum to K."""
    return inclusion_probabilities(self.logits, self.slate_size)

  def sample(self, seed: Any) -> tf.Tensor:
    """The item shown in every row, [B] int32; `log_prob` gives its propensity.

    Args:
      seed: two integers; the same seed shows the same items.
    """
    seeds = tf.random.split(seed, 2)
    uniform = tf.random.stateless_uniform(tf.shape(self.logits), seeds[0], dtype=tf.float64)
    included = ring_times(self.logits, self.slate_size, uniform) < np.inf
    return policies.draw(tf.where(included, self.ranker_logits, -np.inf), 1, seeds[1])[:, 0]

  def top_k(self, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The generator's best K items in the ranker's order, cut at k; see `TwoStagePolicy.top_k`."""
    return policies.TwoStagePolicy(self.logits, self.ranker_logits, self.slate_size).top_k(k)

  def entropy(self) -> tf.Tensor:
    """-Σ_a π(a) log π(a): [B], in nats."""
    return policies.entropy(self.probabilities())


def ring_times(logits: Any, slate_size: int, uniform: tf.Tensor) -> tf.Tensor:
  """Draws a slate: when the clocks of its items ring, from 0 to 1; inf for all other items.

  Args:
    logits: [B, N] floating, the generator's; -inf excludes an item.
    slate_size: K, the expected number of items of a slate. Of at most K items all are candidates.
    uniform: [B, N] float64 in [0, 1), independent.

  Returns:
    [B, N] float64, without gradient. At least one of a row is finite.
  """
  x = tf.cast(_Slate.of(tf.stop_gradient(logits), slate_size).x, tf.float64)
  clocks = tf.where(x > 0, -tf.math.log1p(-uniform) / x, np.inf)
  first = tf.reduce_min(clocks, 1, keepdims=True)
  # The time of the first clock, of rate Σ x, does not depend on which it is, nor on how much later
  # the others ring. Given that a slate has items, it is before 1.
  rate = tf.reduce_sum(x, 1, keepdims=True)
  moved = -tf.math.log1p(-tf.math.expm1(-rate) * tf.math.expm1(-rate * first)) / rate
  clocks += moved - first
  return tf.where(clocks < 1, clocks, np.inf)


def inclusion_probabilities(logits: Any, slate_size: int, copies: Any = None) -> tf.Tensor:
  """pi_b of every item: [B, N] to [B, N], differentiable; rows sum to K.

  Where there are at most K items, all have probability 1. What stands for several items, [N]
  `copies`, has the sum of theirs.
  """
  logits = policies.matrix("logits", logits)

  @tf.custom_gradient
  def inclusion(logits):
    slate = _Slate.of(logits, slate_size, copies)
    return slate.number(slate.pi), lambda d_pi: slate.to_logits(slate.by_time(slate.number(d_pi)))

  return inclusion(logits)


def inclusion_log_prob(logits: Any, actions: Any, slate_size: int, copies: Any = None) -> tf.Tensor:
  """log pi(a_i), of being a candidate: [B], differentiable in the logits.

  Args:
    logits: [B, N] floating, the generator's; -inf excludes an item.
    actions: [B] integer, catalogue indices.
    slate_size: K, the expected number of items of a slate. Of at most K items all are candidates.
    copies: [N], how many items each stands for; None: one.
  """
  logits, actions = policies.matrix("logits", logits), tf.cast(actions, tf.int32)

  @tf.custom_gradient
  def log_prob(logits):
    log_time = _log_time(logits, slate_size, copies)
    own = _Own.of(logits, log_time, actions)

    def gradient(d_log_pi):
      d_own = d_log_pi * own.elasticity
      through_time = _Slate.until(log_time, logits, copies).through_time(d_own[:, None])
      return policies.add_at(through_time, actions, d_own)

    return own.log_pi, gradient

  return log_prob(logits)


def distinct_log_prob(
  logits: Any, ranker_logits: Any, actions: Any, slate_size: int, copies: Any = None
) -> tuple[tf.Tensor, tf.Tensor]:
  """log pi(a_i), of being a candidate, and log qbar(a_i); their sum is log π(a_i).

  Args:
    logits: [B, N] floating, the generator's; both outputs are differentiable in them.
    ranker_logits: [B, N] floating, finite. They receive no gradient.
    actions: [B] integer, catalogue indices.
    slate_size: K, the expected number of items of a slate. Of at most K items all are candidates.
    copies: [N], how many items each stands for; None: one.

  Returns:
    Two [B].
  """
  logits, ranker_logits = policies.two_stages(logits, ranker_logits, slate_size)
  actions = tf.cast(actions, tf.int32)
  reference = tf.gather(ranker_logits, actions, batch_dims=1)
  race = _Race.for_action(slate_size)

  @tf.custom_gradient
  def log_probs(logits):
    log_time = _log_time(logits, slate_size, copies)
    slate, own = _Slate.until(log_time, logits, copies), _Own.of(logits, log_time, actions)
    bins = _Bins.fill(slate, ranker_logits, reference, race)
    single = tf.gather(bins.single, actions[:, None], batch_dims=1)
    drawn = tf.reduce_sum(slate.number(slate.x), 1)
    log_terms = race.log_density + bins.log_absent(race) - own.log_absent(single, race)
    log_total = tf.reduce_logsumexp(log_terms, 1)

    def gradient(d_log_pi, d_log_qbar):
      by_node = d_log_qbar[:, None] * tf.exp(log_terms - log_total[:, None])
      d_x = -d_log_qbar / tf.math.expm1(tf.minimum(drawn, _CERTAIN))
      d_own = d_log_pi * own.elasticity
      d_own -= tf.reduce_sum(by_node * own.slope(single, race), 1) * own.rate

      def to_logits(d_pi):
        d_log_x = slate.by_time(slate.number(d_pi), d_x[:, None])
        return slate.to_logits(policies.add_at(d_log_x, actions, d_own))

      return policies.fused(to_logits, bins.slope(by_node, race))

    return (own.log_pi, log_total - tf.math.log(-tf.math.expm1(-drawn))), gradient

  return log_probs(logits)


def distinct_probabilities(
  logits: Any, ranker_logits: Any, slate_size: int, copies: Any = None
) -> tf.Tensor:
  """π(a) of every action.

  Args:
    logits: [B, N] floating, the generator's; the output is differentiable in them.
    ranker_logits: [B, N] floating, finite. They receive no gradient. Every 50 by which those of a
      row spread cost another pass.
    slate_size: K.
    copies: [N], how many items each stands for, whose probabilities are added; None: one.

  Returns:
    [B, N].
  """
  logits, ranker_logits = policies.two_stages(logits, ranker_logits, slate_size)
  race = _Race.for_catalogue(slate_size)
  best = tf.reduce_max(ranker_logits, 1)

  @tf.custom_gradient
  def probabilities(logits):
    slate = _Slate.of(logits, slate_size, copies)
    drawn = tf.reduce_sum(slate.number(slate.x), 1, keepdims=True)
    some = -tf.math.expm1(-drawn)

    def silence(reference: tf.Tensor) -> tuple[_Bins, tf.Tensor]:
      bins = _Bins.fill(slate, ranker_logits, reference, race)
      return bins, bins.log_absent(race)

    def shown_by(bins, log_absent):
      return slate.number(slate.pi) * bins.wins(log_absent, race, 1) / some

    top = silence(best)
    shown = policies.below_window(
      ranker_logits,
      best,
      shown_by(*top),
      lambda shown, best, inside: tf.where(inside, shown_by(*silence(best)), shown),
    )

    def gradient(d_shown):
      # Through pi_a itself, and through the absence of the others while a rings.
      def through(bins, log_absent, inside):
        d_win = tf.where(inside, slate.number(d_shown) / some, 0.0)
        own = d_win * bins.wins(log_absent, race, 2)
        by_node = bins.wins_at(d_win * slate.pi, log_absent, race)
        return own + slate.number(bins.slope(by_node, race))

      inside = ranker_logits >= best[:, None] - WINDOW
      d_pi = policies.below_window(
        ranker_logits,
        best,
        through(*top, inside),
        lambda total, best, inside: total + through(*silence(best), inside),
      )
      d_x = -tf.reduce_sum(d_shown * shown, 1, keepdims=True)
      d_x /= tf.math.expm1(tf.minimum(drawn, _CERTAIN))
      return slate.to_logits(slate.by_time(d_pi, d_x))

    return shown, gradient

  return probabilities(logits)


class _Slate(NamedTuple):
  """Independent inclusion of the items of B rows.

  Attributes:
    x: [B, N], t exp(z_b), at most `_CERTAIN`.
    pi: [B, N], inclusion probabilities.
    copies: [N], how many items each stands for; None: one.
  """

  x: tf.Tensor
  pi: tf.Tensor
  copies: tf.Tensor | None

  @classmethod
  def of(cls, logits: tf.Tensor, slate_size: int, copies: Any = None) -> _Slate:
    return cls.until(_log_time(logits, slate_size, copies), logits, copies)

  @classmethod
  def until(cls, log_time: tf.Tensor, logits: tf.Tensor, copies: Any) -> _Slate:

    def included(logits, log_time):
      x = tf.exp(tf.minimum(logits + log_time, _LOG_CERTAIN))
      return x, 2 * _half_pi(x / 2)

    x, pi = policies.fused(included, tf.stop_gradient(logits), log_time)
    return cls(x, pi, None if copies is None else tf.cast(copies, x.dtype))

  @property
  def rates(self) -> tf.Tensor:
    """The derivative of every pi in log x, [B, N]."""
    return self.x * (1 - self.pi)

  def number(self, values: tf.Tensor) -> tf.Tensor:
    """Values of items, [B, N], times how many items they are."""
    return values if self.copies is None else values * self.copies

  def by_time(self, d_pi: tf.Tensor, d_x: tf.Tensor | float = 0.0) -> tf.Tensor:
    """Gradients in every pi, [B, N], and in the sum of x, [B, 1]: in every log x, [B, N]."""
    return d_pi * self.rates + d_x * self.number(self.x)

  def to_logits(self, d_log_x: tf.Tensor) -> tf.Tensor:
    """Gradients in every log x: in the logits, whose log t is such that Σ_b pi_b = K."""
    return d_log_x + self.through_time(tf.reduce_sum(d_log_x, 1, keepdims=True))

  def through_time(self, d_log_time: tf.Tensor) -> tf.Tensor:
    """A gradient in log t, [B, 1]: in the logits, [B, N]."""
    rates = self.number(self.rates)
    total = tf.reduce_sum(rates, 1, keepdims=True)
    return rates * tf.math.divide_no_nan(-d_log_time, total)


def _half_pi(half_x: tf.Tensor) -> tf.Tensor:
  """pi / 2 of x / 2, in a third of the time that expm1 takes on CPUs."""
  tangent = tf.tanh(half_x)
  return tangent / (1 + tangent)


def _log_time(logits: tf.Tensor, slate_size: int, copies: Any = None) -> tf.Tensor:
  """log t, [B, 1].

  The search starts from that of groups of items. A group is one item, whose x is the sum of theirs:
  exact where all are small, and where one is much larger than the others.
  """
  logits = tf.stop_gradient(logits)  # XLA cannot compile a loop that a persistent tape records
  return policies.fused(lambda logits: _found_log_time(logits, slate_size, copies), logits)


def _found_log_time(logits: tf.Tensor, slate_size: int, copies: Any) -> tf.Tensor:
  if copies is None:
    number, groups = None, _groups(logits, max(_GROUPS * slate_size, _FEWEST))
  else:
    number = tf.cast(copies, logits.dtype)
    groups = logits + tf.math.log(number)
  total = tf.reduce_logsumexp(groups, 1, keepdims=True)
  low = np.log(slate_size) - total  # since pi is at most x
  start = low if copies is not None else _search(groups, slate_size, low, low)
  found = _search(logits, slate_size, low, start, number)
  return tf.where(tf.math.is_finite(total), found, np.nan)


def _groups(logits: tf.Tensor, number: int) -> tf.Tensor:
  """log Σ exp(z_b) of at most so many groups of items, [B, groups]."""
  items = tf.shape(logits)[1]
  width = (items + number - 1) // number
  padded = tf.pad(logits, [[0, 0], [0, -items % width]], constant_values=-np.inf)
  return tf.reduce_logsumexp(tf.reshape(padded, [tf.shape(logits)[0], width, -1]), 1)


def _search(
  logits: tf.Tensor,
  slate_size: int,
  low: tf.Tensor,
  start: tf.Tensor,
  number: tf.Tensor | None = None,
) -> tf.Tensor:
  """log t, [B, 1], by Halley's method in t, within a bracket.

  Args:
    logits: [B, N].
    slate_size: K.
    low: [B, 1], a lower bound.
    start: [B, 1], the first guess.
    number: [N], how many items each is; None: one.
  """

  def narrow(low, high, log_time, moving) -> tuple[tf.Tensor, ...]:
    half_x = tf.exp(tf.minimum(logits + (log_time - _LOG_2), _LOG_CERTAIN - _LOG_2))
    half_pi = _half_pi(half_x)
    rates = half_x * (1 - 2 * half_pi)
    if number is not None:
      half_pi, rates = number * half_pi, number * rates
    slope = 2 * tf.reduce_sum(rates, 1, keepdims=True)
    curvature = 4 * tf.reduce_sum(half_x * rates, 1, keepdims=True)
    missing = slate_size - 2 * tf.reduce_sum(half_pi, 1, keepdims=True)
    newton = tf.math.divide_no_nan(missing, slope)
    halley = 1 - newton * tf.math.divide_no_nan(curvature, slope) / 2
    step = newton / tf.maximum(halley, 0.1)
    found = log_time + tf.math.log1p(tf.maximum(step, -0.99))
    low, high = tf.where(missing > 0, log_time, low), tf.where(missing > 0, high, log_time)
    # A slope of 0 has no steps: only certain and impossible items are left.
    inside = (found >= low) & (found <= high) & ((slope > 0) | (missing == 0))
    found = tf.where(inside, found, (low + high) / 2)
    found = tf.where(moving, found, log_time)  # no row depends on how long others take
    return low, high, found, tf.abs(found - log_time) > _NEAR

  largest = tf.reduce_max(logits, 1, keepdims=True)
  smallest = tf.reduce_min(tf.where(logits > -np.inf, logits, largest), 1, keepdims=True)
  high = _LOG_CERTAIN - smallest  # all items are certain
  low, start = tf.minimum(low, high), tf.minimum(start, high)
  state = (low, high, start, tf.fill(tf.shape(low), True))
  return tf.while_loop(
    lambda *state: tf.reduce_any(state[-1]), narrow, state, maximum_iterations=_STEPS
  )[2]


class _Race(NamedTuple):
  """The race of the clocks, tabulated: bins of g (relative to a reference) by nodes of log u.

  Polynomials in pi are for items of a pi of at most `_BINNED`, with q the probability that a
  clock rings until a node.

  Attributes:
    low: middle of the first bin.
    nodes: [J].
    log_weights: [J], of the quadrature.
    log_density: [J], log of weight and density of a clock at g = 0.
    absent: [2, bins, J], coefficients of pi and pi² in log(1 - pi q).
    wins: two of [3, bins, J], of 1, pi and pi² in weight times density / (1 - pi q)^power, for the
      powers 1 and 2.
  """

  low: float
  nodes: np.ndarray
  log_weights: np.ndarray
  log_density: np.ndarray
  absent: np.ndarray
  wins: tuple[np.ndarray, ...]

  @classmethod
  @functools.lru_cache
  def for_action(cls, slate_size: int) -> _Race:
    """Ranker logits relative to that of one action."""
    return cls.tabulate(0.0, slate_size)

  @classmethod
  @functools.lru_cache
  def for_catalogue(cls, slate_size: int) -> _Race:
    """Ranker logits relative to the best of a window, in which every item is an action."""
    return cls.tabulate(-WINDOW, slate_size)

  @classmethod
  def tabulate(cls, slowest: float, slate_size: int) -> _Race:
    """Bins and nodes for actions with ranker logits from `slowest` to 0."""
    # In units of 1 / _PER_UNIT, so that v = g + y has few values.
    stride = round(LOG_TIME_STEP * _PER_UNIT)
    lowest = int(np.floor(_PER_UNIT * (slowest + np.log(NEGLIGIBLE / slate_size))))
    g = np.arange(lowest, _PER_UNIT * HEADROOM + 1, dtype=int)
    first = -HEADROOM - np.log(slate_size) - 5.5  # K clocks at `HEADROOM` are silent but for 0.4%
    last = 2.4 - slowest  # the slowest action is still silent with probability 2e-5
    y = np.arange(np.floor(_PER_UNIT * first), _PER_UNIT * last + stride, stride, dtype=int)
    nodes = y / _PER_UNIT
    log_weights = np.full(nodes.shape, np.log(LOG_TIME_STEP))
    log_weights[0] -= np.log(1 - np.exp(-LOG_TIME_STEP))  # stands for all earlier nodes too
    v = np.minimum(np.arange(g[0] + y[0], g[-1] + y[-1] + 1) / _PER_UNIT, _LOG_CERTAIN)
    q = -np.expm1(-np.exp(v))
    at = np.add.outer(g, y) - (g[0] + y[0])
    density = np.exp(log_weights) * np.exp(v - np.exp(v))[at]
    rivals = [_polynomial(functools.partial(_rival, q, power), (0, 1, 2)) for power in (1, 2)]
    return cls(
      low=lowest / _PER_UNIT,
      nodes=nodes,
      log_weights=log_weights,
      log_density=log_weights + nodes - np.exp(nodes),
      absent=_polynomial(lambda pi: np.log1p(-pi * q), (1, 2))[:, at],
      wins=tuple(density * rival[:, at] for rival in rivals),
    )

  def log_factor(self, x: tf.Tensor, pi: tf.Tensor, g: tf.Tensor | float) -> tf.Tensor:
    """log(1 - pi q) at the nodes, for x, pi and g with a last axis of 1."""
    rate = tf.exp(tf.minimum(g + self.nodes.astype(x.dtype.as_numpy_dtype), _LOG_CERTAIN))
    return tf.math.log(tf.exp(-x) + pi * tf.exp(-rate))

  def log_slope(self, x: tf.Tensor, pi: tf.Tensor, g: tf.Tensor | float) -> tf.Tensor:
    """The derivative of `log_factor` in pi, which is negative."""
    rate = tf.exp(tf.minimum(g + self.nodes.astype(x.dtype.as_numpy_dtype), _LOG_CERTAIN))
    return tf.math.expm1(-rate) / (tf.exp(-x) + pi * tf.exp(-rate))


def _rival(q: np.ndarray, power: int, pi: float) -> np.ndarray:
  """What the product over all items has too much for an item of its own."""
  return (1 - pi * q) ** -power


def _polynomial(function: Callable[[float], np.ndarray], powers: tuple[int, ...]) -> np.ndarray:
  """Coefficients, [powers, V], of a function of pi on [0, `_BINNED`] to [V], by least squares.

  Errors are relative to pi to the lowest power.
  """
  pi = (1 - np.cos(np.pi * (np.arange(12) + 0.5) / 12)) * _BINNED / 2  # Chebyshev nodes
  weights = pi ** -min(powers)
  values = np.stack([weight * function(p) for p, weight in zip(pi, weights, strict=True)])
  return np.linalg.lstsq(weights[:, None] * pi[:, None] ** np.array(powers), values)[0]


class _Own(NamedTuple):
  """The actions themselves, which no product over other items has."""

  log_x: tf.Tensor  # [B]
  x: tf.Tensor  # [B, 1]
  pi: tf.Tensor  # [B, 1]

  @classmethod
  def of(cls, logits: tf.Tensor, log_time: tf.Tensor, actions: tf.Tensor) -> _Own:
    log_x = tf.gather(tf.stop_gradient(logits), actions[:, None], batch_dims=1) + log_time
    log_x = tf.minimum(log_x, _LOG_CERTAIN)
    x = tf.exp(log_x)
    return cls(log_x[:, 0], x, -tf.math.expm1(-x))

  @property
  def log_pi(self) -> tf.Tensor:
    """[B], also where pi underflows."""
    x, pi = self.x[:, 0], self.pi[:, 0]
    return self.log_x + tf.where(x < _SMALL, -x / 2, tf.math.log(pi / tf.maximum(x, _SMALL)))

  @property
  def rate(self) -> tf.Tensor:
    """The derivative of pi in log x, [B]."""
    return (self.x * tf.exp(-self.x))[:, 0]

  @property
  def elasticity(self) -> tf.Tensor:
    """The derivative of log pi in log x, [B]."""
    x, pi = self.x[:, 0], self.pi[:, 0]
    return tf.where(x < _SMALL, 1 - x / 2, self.rate / tf.maximum(pi, _SMALL))

  def log_absent(self, single: tf.Tensor, race: _Race) -> tf.Tensor:
    """What `_Bins.log_absent` has of one such item, [B, J]; `single` [B, 1]: by itself."""
    first, second = race.absent[:, round(-race.low * _PER_UNIT)].astype(
      self.pi.dtype.as_numpy_dtype
    )
    binned = self.pi * first + self.pi**2 * second
    return tf.where(single, race.log_factor(self.x, self.pi, 0.0), binned)

  def slope(self, single: tf.Tensor, race: _Race) -> tf.Tensor:
    """Its derivative in pi, [B, J]."""
    first, second = race.absent[:, round(-race.low * _PER_UNIT)].astype(
      self.pi.dtype.as_numpy_dtype
    )
    binned = first + 2 * self.pi * second
    return tf.where(single, race.log_slope(self.x, self.pi, 0.0), binned)


class _Bins(NamedTuple):
  """The items of every row in the bins of a race, and those with a large pi by themselves.

  Attributes:
    slate: the items.
    index: [B, N] int32, row * num_bins + bin.
    num_bins: bins a row.
    single: [B, N] bool: by itself.
    at: [M, 2] int64, row and item of those by themselves.
    singles: x, pi, g relative to the reference, and number of these, [M, 1] each.
  """

  slate: _Slate
  index: tf.Tensor
  num_bins: int
  single: tf.Tensor
  at: tf.Tensor
  singles: tuple[tf.Tensor, ...]

  @classmethod
  def fill(
    cls, slate: _Slate, ranker_logits: tf.Tensor, reference: tf.Tensor, race: _Race
  ) -> _Bins:
    num_bins = race.absent.shape[1]

    def places(pi, ranker_logits, reference):
      # Clipping would hide infinite ranker logits.
      reference = tf.where(policies.is_finite(ranker_logits), reference, np.nan)
      g = ranker_logits - reference[:, None]
      place = tf.round((tf.clip_by_value(g, race.low, HEADROOM) - race.low) * _PER_UNIT)
      first = num_bins * tf.range(tf.shape(g)[0])[:, None]
      # NaN becomes a negative integer on some devices.
      index = tf.clip_by_value(tf.cast(place, tf.int32), 0, num_bins - 1) + first
      return tf.minimum(g, HEADROOM), index, (pi > _BINNED) | (tf.shape(g)[1] <= _FEW)

    g, index, single = policies.fused(places, slate.pi, ranker_logits, reference)
    at = tf.where(single)
    number = tf.ones_like(g[0]) if slate.copies is None else slate.copies
    singles = [tf.gather_nd(v, at) for v in (slate.x, slate.pi, g)]
    singles.append(tf.gather(number, at[:, 1]))
    return cls(slate, index, num_bins, single, at, tuple(v[:, None] for v in singles))

  def log_absent(self, race: _Race) -> tf.Tensor:
    """log Π_b (1 - pi_b q_b) over all items, at the nodes: [B, J]."""
    x, pi, g, number = self.singles
    binned = self._to_nodes(self.slate.number(self.slate.pi), race.absent)
    return binned + self._by_row(number * race.log_factor(x, pi, g))

  def slope(self, by_node: tf.Tensor, race: _Race) -> tf.Tensor:
    """Σ_j by_node times the derivative of log(1 - pi_b q_b) in pi_b: [B, J] to [B, N]."""
    x, pi, g, _ = self.singles
    first, second = self._to_bins(by_node, race.absent)
    by_node = tf.gather(by_node, self.at[:, 0])
    of_singles = tf.reduce_sum(by_node * race.log_slope(x, pi, g), 1)
    return self._with_singles(self._read(first, 2 * second), of_singles)

  def wins(self, log_absent: tf.Tensor, race: _Race, power: int) -> tf.Tensor:
    """∫ density Π_{b != a} (1 - pi_b q_b) / (1 - pi_a q_a)^(power - 1) du of every a: [B, N]."""
    bins = self._to_bins(tf.exp(log_absent), race.wins[power - 1])
    of_singles = tf.reduce_sum(self._single_wins(log_absent, race, power), 1)
    return self._with_singles(self._read(*bins), of_singles)

  def wins_at(self, factor: tf.Tensor, log_absent: tf.Tensor, race: _Race) -> tf.Tensor:
    """Σ_a factor times the integrand of `wins`, at the nodes: [B, N] to [B, J]."""
    of_singles = tf.gather_nd(factor, self.at)[:, None] * self._single_wins(log_absent, race, 1)
    binned = self._to_nodes(factor, race.wins[0]) * tf.exp(log_absent)
    return binned + self._by_row(of_singles)

  def _single_wins(self, log_absent: tf.Tensor, race: _Race, power: int) -> tf.Tensor:
    """The integrand of `wins` of the items by themselves, [M, J]."""
    x, pi, g, _ = self.singles
    dtype = x.dtype.as_numpy_dtype
    v = tf.minimum(g + race.nodes.astype(dtype), _LOG_CERTAIN)
    log_density = race.log_weights.astype(dtype) + v - tf.exp(v)
    log_absent = tf.gather(log_absent, self.at[:, 0])
    return tf.exp(log_density + log_absent - power * race.log_factor(x, pi, g))

  def _by_row(self, values: tf.Tensor) -> tf.Tensor:
    """Sums of what the items by themselves have: [M, J] to [B, J]."""
    return tf.math.unsorted_segment_sum(values, self.at[:, 0], tf.shape(self.index)[0])

  def _with_singles(self, values: tf.Tensor, of_singles: tf.Tensor) -> tf.Tensor:
    """Values [B, N] with those of the items by themselves replaced by [M]."""
    return tf.tensor_scatter_nd_update(values, self.at, of_singles)

  def _to_nodes(self, factor: tf.Tensor, tables: np.ndarray) -> tf.Tensor:
    """Σ_b factor_b times polynomials of pi_b, over all in bins: [B, N] to [B, J].

    The first coefficient multiplies `factor`, the next one `factor` times pi, and so on.
    """

    def to_nodes(factor, pi, index, single):
      factor = tf.where(single, 0.0, factor)
      total = tf.constant(0.0, factor.dtype)
      for start in range(0, len(tables), 2):
        weights = factor * pi**start
        pair = tf.complex(weights, weights * pi)
        rows = tf.shape(factor)[0]
        sums = tf.math.unsorted_segment_sum(pair, index, rows * self.num_bins)
        sums = tf.reshape(sums, [rows, self.num_bins])
        parts = (tf.math.real(sums), tf.math.imag(sums))
        for part, table in zip(parts, tables[start : start + 2], strict=False):
          total += tf.matmul(part, table.astype(factor.dtype.as_numpy_dtype))
      return total

    return policies.fused(to_nodes, factor, self.slate.pi, self.index, self.single)

  def _to_bins(self, by_node: tf.Tensor, tables: np.ndarray) -> list[tf.Tensor]:
    """Σ_j by_node times each coefficient: [B, J] to [B, bins] each."""
    dtype = by_node.dtype.as_numpy_dtype
    return [tf.matmul(by_node, table.T.astype(dtype)) for table in tables]

  def _read(self, *coefficients: tf.Tensor) -> tf.Tensor:
    """The polynomial of each item's bin at its pi: [B, bins] each to [B, N]."""

    def read(pi, index, *coefficients):
      zeros = tf.zeros_like(coefficients[0])
      total = tf.constant(0.0, zeros.dtype)
      for start in range(0, len(coefficients), 2):
        pair = (*coefficients[start : start + 2], zeros)[:2]
        found = tf.gather_nd(tf.reshape(tf.complex(*pair), [-1]), index[..., None])
        total += (tf.math.real(found) + pi * tf.math.imag(found)) * pi**start
      return total

    return policies.fused(read, self.slate.pi, self.index, *coefficients)
