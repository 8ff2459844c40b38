"""Plackett-Luce slates: items drawn without replacement, each in proportion to exp(logit)."""

from __future__ import annotations

import numpy as np

from tf_twostage.errors import InputError

_CHUNK = 2_000_000  # numbers of an array
_STEP = 0.2  # of log time


def slot_probabilities(logits: np.ndarray, size: int) -> np.ndarray:
  """The probability that Plackett-Luce draws each item into each of the first `size` slots.

  Items arrive after exponential times with rates exp(logit), so that slot k has item a if k other
  items arrive before it: ∫ rate_a exp(-rate_a t) P(k of the others arrived by t) dt. The number
  that arrived is Poisson-binomial; forward and backward recursions over the items leave one out.
  The integral over log t is a trapezoidal sum.

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
  for rows in np.array_split(np.arange(batch), -(-batch * wide * size * len(log_times) // _CHUNK)):
    shifted = logits[rows] - logits[rows].max(axis=1, keepdims=True)
    clock = np.exp(shifted.T[..., None] + log_times)  # rate times time, [N, b, T]
    expected = -np.expm1(-clock).sum(axis=0)
    # Later, fewer than L arrivals have a probability below 1e-12, by Chernoff's bound.
    early = np.maximum(expected - size, 0) ** 2 < 60 * expected
    clock = clock[..., early.any(axis=0)]
    arrived = -np.expm1(-clock)
    before = _counts(arrived, size)
    after = _counts(arrived[::-1], size)[::-1]
    weight = _STEP * clock * np.exp(-clock)
    for k in range(size):
      others = [weight, before[..., : k + 1], after[..., k::-1]]
      found[rows, :, k] = np.einsum("nbt,nbtj,nbtj->bn", *others)
  return found


def _counts(arrived: np.ndarray, size: int) -> np.ndarray:
  """The probability that 0 to size - 1 of the items before each one arrived, [N, b, T, size]."""
  counts = np.zeros((*arrived.shape, size))
  counts[0, ..., 0] = 1
  for item in range(len(arrived) - 1):
    chance = arrived[item, ..., None]
    counts[item + 1] = (1 - chance) * counts[item]
    counts[item + 1, ..., 1:] += chance * counts[item, ..., :-1]
  return counts
