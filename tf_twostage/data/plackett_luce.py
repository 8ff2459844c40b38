"""Plackett-Luce slates: items drawn without replacement, each in proportion to exp(logit)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tf_twostage.errors import InputError

_CHUNK = 2_000_000  # numbers of an array
_STEP = 0.2  # of log time


def slot_probabilities(logits: np.ndarray, size: int) -> np.ndarray:
  """The probability that Plackett-Luce draws each item into each of the first `size` slots.

  Items arrive after exponential times with rates exp(logit), so that slot k has item a if k other
  items arrive before it: ∫ rate_a exp(-rate_a t) P(k of the others arrived by t) dt. The number
  that arrived is Poisson-binomial. Division leaves out an item of a probability below 1/2, where it
  is stable; forward and backward recursions leave out each of the few likelier ones. The integral
  over log t is a trapezoidal sum.

  Args:
    logits: [B, N].
    size: number of slots, L <= N.

  Returns:
    [B, N, L]; sums to 1 over the items of a slot. Exact to 1e-8.
  """
  batch, wide = logits.shape
  if not 1 <= size <= wide:
    raise InputError(f"size must be within 1 and the {wide} items, got {size}")
  found = np.empty((batch, wide, size))
  span = np.log(4e9 * wide) + np.ptp(logits, axis=1).max(initial=0.0)
  log_times = np.arange(np.log(1e-8 / wide), np.log(1e-8 / wide) + span, _STEP)
  some = max(1, _CHUNK // ((wide + 8 * size**2) * len(log_times)))
  for rows in np.array_split(np.arange(batch), range(some, batch, some)):
    order = np.argsort(-logits[rows], axis=1)
    shifted = np.take_along_axis(logits[rows], order, axis=1)
    shifted = shifted - shifted[:, :1]
    clock = np.exp(shifted.T[..., None] + log_times)  # rate times time, [N, b, T]
    expected = -np.expm1(-clock).sum(axis=0)
    # Later, fewer than L arrivals have a probability below 1e-12, by Chernoff's bound.
    early = np.maximum(expected - size, 0) ** 2 < 60 * expected
    clock = clock[..., early.any(axis=0)]
    arrived = -np.expm1(-clock)
    weight = _STEP * clock * np.exp(-clock)
    likely = int((arrived.max(axis=(1, 2)) > 0.5).sum())
    of_others = _poisson_binomial(arrived[likely:], size)
    *before, total = _counts(of_others, arrived[:likely])
    *after, _ = _counts(_poisson_binomial(arrived[:0], size), arrived[:likely][::-1])
    slots = np.empty((len(rows), wide, size))
    for item, (low, high) in enumerate(zip(before, reversed(after), strict=True)):
      for k in range(size):
        counts = np.einsum("btj,btj->bt", low[..., : k + 1], high[..., k::-1])
        slots[:, item, k] = np.vecdot(weight[item], counts)
    chance, left = arrived[likely:], np.zeros(())
    for k in range(size):
      left = (total[..., k] - chance * left) / (1 - chance)  # P(k of the others arrived)
      slots[:, likely:, k] = np.einsum("nbt,nbt->bn", weight[likely:], left)
    sorted_back = np.argsort(order, axis=1)[..., None]
    found[rows] = np.maximum(np.take_along_axis(slots, sorted_back, axis=1), 0)  # rounding
  return found


def _poisson_binomial(chance: np.ndarray, size: int) -> np.ndarray:
  """P(0), ..., P(L - 1) of independent events [N, ...], each of at most 1/2: [..., L].

  These are the elementary symmetric polynomials of the odds, by Newton's identities from sums of
  their powers, times the probability of none.
  """
  odds = chance / (1 - chance)
  power, sums, found = np.ones_like(odds), [], [np.prod(1 - chance, axis=0)]
  for k in range(1, size):
    power *= odds
    sums.append(power.sum(axis=0))
    terms = ((-1) ** i * found[k - 1 - i] * total for i, total in enumerate(sums))
    found.append(np.sum([*terms], axis=0) / k)
  return np.stack(found, axis=-1)


def _counts(counts: np.ndarray, arrived: np.ndarray) -> Iterator[np.ndarray]:
  """Yields P(0), ..., P(L - 1) arrivals, [..., L], first as given, then with each item added."""
  yield counts
  for chance in arrived[..., None]:
    added = (1 - chance) * counts
    added[..., 1:] += chance * counts[..., :-1]
    counts = added
    yield counts
