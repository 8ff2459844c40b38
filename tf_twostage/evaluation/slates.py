"""What estimators of slates read: a few numbers for each slot of each slate, checked.

A slate of user x has the items a_1 .. a_L in its slots and a reward r_k for each. Its value is the
sum of these rewards. π is the target policy, β the logging policy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, require
from tf_twostage.evaluation.rows import TOLERANCE, as_numbers, check_groups

_PROBABILITIES = ("target_probabilities", "target_cascade")
_PROPENSITIES = ("propensities", "cascade_propensities", "examination")
_OTHERS = ("slot_rewards", "predicted_returns", "direct_returns", "target_exposures")
_MAX_DIFFERENCE = 1e-3  # of the cascade from the product of slots, relative


@dataclasses.dataclass(frozen=True, eq=False)
class SlateRows:
  """Logged slates, with the target policy at the same slates; S slates of at most L slots.

  Estimators refuse rows that lack what they read.

  Attributes:
    slot_rewards: [S, L] finite, r_k.
    mask: [S, L] bool, which slots were shown; None: all. Values of others are ignored.
    propensities: [S, L] in (0, 1], β(a_k at k | x), of showing the slot's item in this slot.
    target_probabilities: [S, L] in [0, 1], π(a_k at k | x).
    cascade_propensities: [S, L] in (0, 1], β(a_1 .. a_k | x), of this slot and all before it.
    target_cascade: [S, L] in [0, 1], π(a_1 .. a_k | x).
    examination: [S, L] in (0, 1], the probability that a slot is examined, up to a common factor.
    target_exposures: [S, L] >= 0, Σ_j examination_j π(a_k at j | x): how often the target policy
      has the slot's item examined.
    predicted_returns: [S, L], Q_k(x, a_1 .. a_k): predicted rewards of slot k and all after it.
    direct_returns: [S, L], Σ_a π(a at k | x, a_1 .. a_{k-1}) Q_k(x, a_1 .. a_{k-1}, a).
    additive_weights: [S], for logging policies whose slots depend on each other; see
      `slate_estimators.pseudoinverse_weights`.
    groups: [S] ids, such as users; slates of one group depend on each other. None: all slates are
      independent.
    group_names: user ids, in messages, of `groups` that are indices; None: the groups themselves.
    unlogged: number of items that π shows and the log never does, and π's mass on them.

  Raises:
    InputError: an array is empty, has another shape, or holds a value out of range.
  """

  slot_rewards: np.ndarray
  mask: np.ndarray | None = None
  propensities: np.ndarray | None = None
  target_probabilities: np.ndarray | None = None
  cascade_propensities: np.ndarray | None = None
  target_cascade: np.ndarray | None = None
  examination: np.ndarray | None = None
  target_exposures: np.ndarray | None = None
  predicted_returns: np.ndarray | None = None
  direct_returns: np.ndarray | None = None
  additive_weights: np.ndarray | None = None
  groups: np.ndarray | None = None
  group_names: Sequence[str] | None = None
  unlogged: tuple[int, float] = (0, np.nan)
  noun: ClassVar[str] = "slate"

  def __post_init__(self):
    rewards = as_numbers("slot_rewards", self.slot_rewards)
    if rewards.ndim != 2 or not rewards.size:
      raise InputError(f"slot_rewards must be [S, L] with slates, got shape {rewards.shape}")
    shape = rewards.shape
    mask = np.ones(shape, bool) if self.mask is None else np.asarray(self.mask)
    if mask.dtype != bool or mask.shape != shape or not mask.any(axis=1).all():
      raise InputError(f"mask must be {shape} bool, and every slate needs a slot that was shown")
    object.__setattr__(self, "mask", mask)
    for name in (*_PROBABILITIES, *_PROPENSITIES, *_OTHERS):
      if getattr(self, name) is not None:
        object.__setattr__(self, name, _check(name, getattr(self, name), mask))
    for name in ("cascade_propensities", "target_cascade"):
      if getattr(self, name) is not None:
        cascade = getattr(self, name)
        gaps = (~mask[:, :-1] & mask[:, 1:]).any(axis=1)
        require(~gaps, name, "needs slates without missing slots", "drop such slates", unit="slate")
        rises = mask[:, 1:] & (cascade[:, 1:] > (1 + TOLERANCE) * cascade[:, :-1])
        rule = "must not rise from a slot to the next"
        remedy = "multiply the probabilities of all slots up to each"
        require(~rises.any(axis=1), name, rule, remedy, unit="slate")
    if self.groups is not None:
      object.__setattr__(self, "groups", check_groups(self.groups, len(rewards)))

  def __len__(self) -> int:
    return len(self.slot_rewards)

  @functools.cached_property
  def rewards(self) -> np.ndarray:
    """[S] the rewards of whole slates."""
    return self.slot_rewards.sum(axis=1)

  @functools.cached_property
  def units(self) -> np.ndarray | None:
    """[S] groups as codes 0..G-1; None: each slate is independent of all others."""
    return None if self.groups is None else pd.factorize(self.groups)[0]

  def get(self, name: str) -> np.ndarray:
    """A column of the slates; refuses if it is missing."""
    values = getattr(self, name)
    if values is None:
      raise InputError(f"{name}: the slates have none, and this estimator needs them")
    return values

  def slot_weights(self) -> np.ndarray:
    """[S, L] π(a_k at k | x) / β(a_k at k | x)."""
    return self._ratio(self.get("target_probabilities"), self.get("propensities"))

  def prefix_weights(self) -> np.ndarray:
    """[S, L] π(a_1 .. a_k | x) / β(a_1 .. a_k | x)."""
    logging = self.get("cascade_propensities")
    return self._ratio(self.get("target_cascade"), logging)

  def slate_weights(self) -> np.ndarray:
    """[S, L] the ratio of whole slates, in each of their slots."""
    last = self.shown.sum(axis=1, keepdims=True) - 1
    return np.take_along_axis(self.prefix_weights(), last, axis=1) * self.shown

  def exposure_weights(self) -> np.ndarray:
    """[S, L] how often π has a_k examined, over β(a_k at k | x) Σ_j examination_j."""
    total = self.get("examination").sum(axis=1, where=self.shown, keepdims=True)
    return self._ratio(self.get("target_exposures"), self.get("propensities") * total)

  def sum_weights(self) -> np.ndarray:
    """[S, L] 1 + Σ_k (ω_k - 1) of slots that β draws independently; see `pseudoinverse_weights`."""
    weights = self.additive_weights
    if weights is None:
      slots = self.get("propensities").cumprod(axis=1)
      drawn = self.get("cascade_propensities")
      same = (np.abs(drawn / slots - 1) <= _MAX_DIFFERENCE).all(axis=1)
      require(
        same,
        "cascade_propensities",
        "must be the products of the slots' propensities",
        "the logging policy does not draw slots independently; pass the weights of"
        " pseudoinverse_weights as `additive_weights`",
        unit="slate",
      )
      weights = 1 + (self.slot_weights() - 1).sum(axis=1, where=self.shown)
    return np.asarray(weights, np.float64)[:, np.newaxis] * self.shown

  @property
  def shown(self) -> np.ndarray:
    """[S, L] bool: the mask, which exists after the checks."""
    assert self.mask is not None
    return self.mask

  def _ratio(self, target: np.ndarray, logging: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
      weights = np.where(self.shown, target / logging, 0.0)
    rule, remedy = "must not be so small that a weight overflows", "log the true propensity"
    require(np.isfinite(weights).all(axis=1), "propensities", rule, remedy, unit="slate")
    return weights


def _check(name: str, values: Any, mask: np.ndarray) -> np.ndarray:
  """[S, L] float64 without a value out of range; 1 or 0 in slots that were not shown."""
  array = as_numbers(name, values)
  if array.shape != mask.shape:
    raise InputError(f"{name} has shape {array.shape}, slot_rewards {mask.shape}; align them")
  array = np.where(mask, array, 1.0 if name in _PROPENSITIES else 0.0)
  if name in _PROPENSITIES:
    rule, valid = "must lie in (0, 1]", (array > 0) & (array <= 1)
  elif name in _PROBABILITIES:
    rule, valid = "must lie in [0, 1]", (array >= 0) & (array <= 1 + TOLERANCE)
  else:
    rule, valid = "must be finite", np.isfinite(array)
  require(valid.all(axis=1), name, rule, "drop slates where it is unknown", unit="slate")
  return array
