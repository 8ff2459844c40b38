"""Arrays of an off-policy evaluation on the Open Bandit Dataset, for this library and for OBP.

Knows numpy and pandas only, so that it runs beside OBP in an environment without TensorFlow.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import pandas as pd

NUM_ITEMS, NUM_POSITIONS, NUM_FOLDS = 80, 3, 4
THRESHOLD = 2.0  # of clipped, switching and shrinking estimators: it bites on both logs
GRID = [0.5, 1.0, 2.0, 5.0, float("inf")]  # that SLOPE chooses from
# (the policy that logged, the policy to evaluate)
PAIRS = [("random", "bts"), ("bts", "random")]


class Problem(NamedTuple):
  """One log and one target policy; n rows.

  Attributes:
    actions, positions: [n] int, from 0.
    rewards, propensities: [n].
    policy: [NUM_ITEMS, NUM_POSITIONS], the target policy; it has no context.
    predicted_rewards: [n, NUM_ITEMS] at the position of each row, by a model that has not seen it.
  """

  actions: np.ndarray
  positions: np.ndarray
  rewards: np.ndarray
  propensities: np.ndarray
  policy: np.ndarray
  predicted_rewards: np.ndarray

  @property
  def probabilities(self) -> np.ndarray:
    """[n, NUM_ITEMS]."""
    return self.policy.T[self.positions]


def read_log(root: pathlib.Path, policy: str) -> pd.DataFrame:
  return pd.read_csv(
    root / "open-bandit" / policy / "all" / "all.csv",
    usecols=["item_id", "position", "click", "propensity_score"],
  )


def problem(root: pathlib.Path, logging: str, target: str) -> Problem:
  log = read_log(root, logging)
  actions, positions = log["item_id"].to_numpy(), log["position"].to_numpy() - 1
  rewards = log["click"].to_numpy(float)
  return Problem(
    actions,
    positions,
    rewards,
    log["propensity_score"].to_numpy(float),
    policy_of(root, target),
    _predict(actions, positions, rewards),
  )


def pooled(root: pathlib.Path, target: str) -> tuple[Problem, np.ndarray, dict[str, np.ndarray]]:
  """Both logs as one: the rows, who logged them [n], and each policy's propensities of them [n]."""
  parts = [problem(root, logging, target) for logging, _ in PAIRS]
  columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in Problem._fields}
  whole = Problem(**columns)._replace(policy=parts[0].policy)
  loggers = np.repeat([logging for logging, _ in PAIRS], [len(part.actions) for part in parts])
  tables = {name: policy_of(root, name) for name, _ in PAIRS}
  propensities = {n: table[whole.actions, whole.positions] for n, table in tables.items()}
  return whole, loggers, propensities


def policy_of(root: pathlib.Path, name: str) -> np.ndarray:
  """[NUM_ITEMS, NUM_POSITIONS]: uniform for random; for bts the shares of the items in its log.

  Thompson sampling has no context but learns over time; shares estimate its average. Averages of
  the logged propensities would not: E[β(a) | a was drawn] = E[β(a)²] / E[β(a)] favours the times
  at which the policy was fond of an item.
  """
  if name == "random":
    return np.full((NUM_ITEMS, NUM_POSITIONS), 1 / NUM_ITEMS)
  log = read_log(root, name)
  counts = _table(log["item_id"].to_numpy(), log["position"].to_numpy() - 1, np.ones(len(log)))
  return counts / counts.sum(axis=0)


def _predict(actions: np.ndarray, positions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
  """Mean reward by item and position over the other folds, drawn towards the overall mean."""
  folds = np.arange(len(actions)) % NUM_FOLDS
  out = np.empty((len(actions), NUM_ITEMS))
  for fold in range(NUM_FOLDS):
    train, rows = folds != fold, folds == fold
    total = _table(actions[train], positions[train], rewards[train])
    count = _table(actions[train], positions[train], np.ones(train.sum()))
    out[rows] = ((total + 100 * rewards[train].mean()) / (count + 100)).T[positions[rows]]
  return out


def _table(actions: np.ndarray, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Sums of `values` [n] by item and position: [NUM_ITEMS, NUM_POSITIONS]."""
  cell = actions * NUM_POSITIONS + positions
  sums = np.bincount(cell, weights=values, minlength=NUM_ITEMS * NUM_POSITIONS)
  return sums.reshape(NUM_ITEMS, NUM_POSITIONS)
