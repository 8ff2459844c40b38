"""What off-policy estimators read of a log: a few numbers for each row, checked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, require

TOLERANCE = 1e-4  # float32 softmaxes of large catalogues sum to one within this
# Columns of `PolicyRows`: which values are valid, the rule, and the remedy.
_RULES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
  "rewards": (np.isfinite, "must be finite", "drop the rows whose outcome is unknown"),
  "propensities": (
    lambda values: (values > 0) & (values <= 1),
    "must lie in (0, 1]",
    "log the probability with which the action was drawn; a row where it is unknown or zero cannot"
    " be used",
  ),
  "target_probabilities": (
    lambda values: (values >= 0) & (values <= 1 + TOLERANCE),
    "must lie in [0, 1]",
    "pass the target policy's probability of the logged action",
  ),
  "predicted_rewards": (np.isfinite, "must be finite", "fix the reward model"),
  "direct_values": (np.isfinite, "must be finite", "fix the reward model"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyRows:
  """Logged rewards, with the target policy π and a reward model rhat at the same rows; n rows.

  Attributes:
    rewards: [n] finite.
    propensities: [n] in (0, 1], β(a_i | x_i), the logging probability of the logged action.
    target_probabilities: [n] in [0, 1], π(a_i | x_i) of the same action.
    predicted_rewards: [n] rhat(x_i, a_i); None without a reward model.
    direct_values: [n] Σ_a π(a | x_i) rhat(x_i, a); None without a reward model.
    groups: [n] ids, such as users; rows of one group depend on each other. None: all rows are
      independent.
    group_names: user ids, in messages, of `groups` that are indices; None: the groups themselves.
    action_mass: [N] Σ_i π(a | x_i); None if unknown.
    action_counts: [N] how often each action was logged; None if unknown.

  Raises:
    InputError: an array is empty, has another length, or holds a value out of range.
  """

  rewards: np.ndarray
  propensities: np.ndarray
  target_probabilities: np.ndarray
  predicted_rewards: np.ndarray | None = None
  direct_values: np.ndarray | None = None
  groups: np.ndarray | None = None
  group_names: Sequence[str] | None = None
  action_mass: np.ndarray | None = None
  action_counts: np.ndarray | None = None
  noun: ClassVar[str] = "row"

  def __post_init__(self):
    n = len(check_vector("rewards", self.rewards))
    for name, (is_valid, rule, remedy) in _RULES.items():
      if getattr(self, name) is not None:
        column = check_vector(name, getattr(self, name), n)
        require(is_valid(column), name, rule, remedy, column)
        object.__setattr__(self, name, column)
    if (self.predicted_rewards is None) != (self.direct_values is None):
      raise InputError("predicted_rewards and direct_values are of one model: pass both or neither")
    if self.groups is not None:
      object.__setattr__(self, "groups", check_groups(self.groups, n))
    with np.errstate(over="ignore"):
      finite = np.isfinite(self.weights)
    rule, remedy = "must not be so small that the weight overflows", "log the true propensity"
    require(finite, "propensities", rule, remedy, self.propensities)

  @functools.cached_property
  def weights(self) -> np.ndarray:
    """[n] ω_i = π(a_i | x_i) / β(a_i | x_i)."""
    return self.target_probabilities / self.propensities

  @functools.cached_property
  def units(self) -> np.ndarray | None:
    """[n] groups as codes 0..G-1; None: each row is independent of all others."""
    return None if self.groups is None else pd.factorize(self.groups)[0]

  @functools.cached_property
  def unlogged(self) -> tuple[int, float]:
    """Number of actions that π takes and the log never shows, and π's mass on them; 0 and NaN if
    unknown."""
    if self.action_mass is None or self.action_counts is None:
      return 0, np.nan
    mass = self.action_mass[self.action_counts == 0]
    return int(np.count_nonzero(mass)), float(mass.sum() / len(self))

  def __len__(self) -> int:
    return len(self.rewards)

  @classmethod
  def from_arrays(
    cls,
    actions: Any,
    rewards: Any,
    propensities: Any,
    probabilities: Any,
    predicted_rewards: Any = None,
    groups: Any = None,
  ) -> PolicyRows:
    """Reduces catalogue-wide arrays to rows.

    Open Bandit Pipeline calls these action, reward, pscore, action_dist (at the row's position)
    and estimated_rewards_by_reg_model.

    Args:
      actions: [n] int, catalogue index of the logged action.
      rewards: [n].
      propensities: [n], β(a_i | x_i).
      probabilities: [n, N], π(a | x_i); each row sums to 1 within 1e-4. For a policy without
        context, `np.broadcast_to(policy, (n, N))` takes no memory.
      predicted_rewards: [n, N], rhat(x_i, a).
      groups: [n] ids.

    Raises:
      InputError: as for the class; actions are not catalogue indices; probabilities are negative
        or do not sum to 1; shapes do not fit.
    """
    rewards = check_vector("rewards", rewards)
    n = len(rewards)
    probabilities = _check_matrix("probabilities", probabilities, n)
    check_distribution("probabilities", probabilities)
    num_actions = probabilities.shape[1]
    actions = np.asarray(actions)
    if actions.dtype.kind not in "iu" or actions.shape != (n,):
      raise InputError(
        f"actions must be [{n}] int, got {actions.dtype} of shape {actions.shape}; pass one"
        " catalogue index for each row"
      )
    inside, remedy = (actions >= 0) & (actions < num_actions), "index the columns of probabilities"
    require(inside, "actions", f"must lie in [0, {num_actions})", remedy, actions)
    row = np.arange(n)
    predicted = direct = None
    if predicted_rewards is not None:
      table = _check_matrix("predicted_rewards", predicted_rewards, n)
      if table.shape != probabilities.shape:
        raise InputError(
          f"predicted_rewards {table.shape} and probabilities {probabilities.shape} must have one"
          " shape [n, N]; predict every action of the catalogue"
        )
      predicted = table[row, actions]
      direct = np.einsum("na,na->n", probabilities, table, dtype=np.float64)
    return cls(
      rewards=rewards,
      propensities=propensities,
      target_probabilities=probabilities[row, actions],
      predicted_rewards=predicted,
      direct_values=direct,
      groups=groups,
      action_mass=probabilities.sum(axis=0, dtype=np.float64),
      action_counts=np.bincount(actions, minlength=num_actions),
    )


def balanced_propensities(policies: Any, propensities: Mapping[Any, Any]) -> np.ndarray:
  """Propensities of rows that several logging policies drew: Σ_j share_j β_j(a_i | x_i), [n].

  With them IPS is balanced IPS, and every other estimator its balanced version. A row counts as
  drawn from the mixture of all policies, so that weights are huge only where no policy shows an
  item often.

  Args:
    policies: [n], which policy logged each row.
    propensities: of each policy, the probability with which it shows the item of each row, [n] in
      [0, 1], also in rows that others logged.

  Raises:
    InputError: a policy of a row has no propensities, or gives the row's own item none.

  References:
    Agarwal, Basu, Schnabel, Joachims, Effective Evaluation Using Logged Bandit Feedback from
      Multiple Loggers, KDD 2017, section 4.1.
  """
  policies = np.asarray(policies)
  names, codes = np.unique(policies, return_inverse=True)
  lacking = [str(name) for name in names if name not in propensities]
  if lacking:
    raise InputError(
      f"propensities: none of policy {', '.join(lacking)}, which logged rows; pass its probability"
      " of the item of every row"
    )
  columns = [check_vector(f"propensities of {name}", propensities[name]) for name in names]
  for name, column in zip(names, columns, strict=True):
    if len(column) != len(policies):
      raise InputError(f"propensities of {name} has {len(column)} rows, policies {len(policies)}")
    own = policies == name
    valid = (column >= 0) & (column <= 1) & ((column > 0) | ~own)
    rule = "must lie in [0, 1], and above 0 where the policy logged the row"
    require(valid, f"propensities of {name}", rule, "log the true probability", column)
  return np.average(columns, axis=0, weights=np.bincount(codes))


def check_vector(name: str, values: Any, length: int | None = None) -> np.ndarray:
  """`values` as [n] float64, n > 0 and equal to `length` if given."""
  array = as_numbers(name, values)
  if array.ndim != 1:
    raise InputError(f"{name} must be a vector [n], got shape {array.shape}")
  if not array.size:
    raise InputError(f"{name} is empty: there is nothing to evaluate on")
  if length is not None and len(array) != length:
    raise InputError(f"{name} has {len(array)} rows, rewards have {length}; align them by row")
  return array.astype(np.float64, copy=False)


def check_groups(groups: Any, length: int) -> np.ndarray:
  """`groups` as [n] ids without a missing one."""
  array = np.asarray(groups)
  if array.ndim != 1 or len(array) != length:
    raise InputError(
      f"groups must be [{length}], got shape {array.shape}; pass one id for each row"
    )
  require(~pd.isna(array), "groups", "must not be missing", "give every row an id", array)
  return array


def as_numbers(name: str, values: Any) -> np.ndarray:
  """`values` as an array of numbers, of any shape."""
  try:
    array = np.asarray(values)
  except ValueError as error:  # ragged lists
    raise InputError(f"{name} is not an array of numbers: {error}") from error
  if array.dtype.kind not in "biuf":
    raise InputError(f"{name} must hold numbers, got {array.dtype}; convert it first")
  return array


def _check_matrix(name: str, values: Any, length: int) -> np.ndarray:
  array = as_numbers(name, values)
  if array.ndim != 2 or len(array) != length or not array.shape[1]:
    raise InputError(f"{name} must be [n, N] with n = {length} rows, got shape {array.shape}")
  return array


def check_distribution(name: str, probabilities: np.ndarray) -> None:
  """Raises InputError unless all rows of `probabilities` [n, N] are distributions."""
  lowest = probabilities.min(axis=1)  # NaN passes through, and fails the comparison
  remedy = "pass a distribution over the catalogue for each row"
  require(lowest >= 0, name, "must be >= 0", remedy, lowest)
  total = probabilities.sum(axis=1, dtype=np.float64)
  one = np.abs(total - 1) <= TOLERANCE
  require(one, name, "must sum to 1", remedy + " (a softmax, not logits)", total)
