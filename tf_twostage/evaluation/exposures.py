"""Estimated exposure in a log of ratings or orders: how likely an item was met at a time.

Such a log does not say what users could choose from. An item is modelled as a draw by its
popularity at the time, the same for all users: a model that read their features would take
preference for exposure.

References: Yi et al. Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations.
RecSys 2019: popularity over time as the probability of an item.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_PERIODS = 128  # at most; all powers of two up to it are tried
_STRENGTHS = tuple(10.0**k for k in range(1, 7))
_CELLS = 5 * 10**7  # counts of items by period that are held in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Exposures:
  """Estimated exposure propensities.

  Attributes:
    values: [n] float32 in (0, 1], the probability of each row's item at its time; the row itself is
      not counted.
    latest: [N] the same of all items in the last period, where all rows are counted.
    periods: number of periods, of equally many rows.
    strength: how many rows the item's share of all rows counts as, beside those of the period.
    log_likelihood: mean over rows, nats, each predicted from the others.
    share_log_likelihood: the same for the items' shares of all rows alone.
  """

  values: np.ndarray
  latest: np.ndarray
  periods: int
  strength: float
  log_likelihood: float
  share_log_likelihood: float

  def facts(self) -> dict[str, Any]:
    """All but the arrays, JSON-able."""
    return {name: fact for name, fact in vars(self).items() if not isinstance(fact, np.ndarray)}

  def note(self) -> str:
    """One sentence for reports."""
    when = f" in {self.periods} periods" if self.periods > 1 else ""
    return (
      f"exposure is ESTIMATED, by the popularity of items{when}; losses with importance weights"
      " depend on it, cross_entropy does not"
    )


def estimate(action: np.ndarray, time: np.ndarray | None, num_items: int) -> Exposures:
  """Estimates exposure by popularity and time.

  The probability of item i in period t is (c_ti + s q_i) / (n_t + s): counts c and n of the period,
  smoothed towards the share q of all rows. The likelihood of each row under the counts of the
  others chooses the number of periods and the strength s.

  Args:
    action: [n] int, the item of each row.
    time: [n] when, or None: popularity is then the same at all times.
    num_items: N.
  """
  n = len(action)
  extra = min(1.0, 0.1 * n / num_items)  # rows of an item without any
  counts = np.bincount(action, minlength=num_items)
  total = n + extra * num_items
  share, others = (counts + extra) / total, np.maximum(counts - 1 + extra, extra) / (total - 1)
  overall = float(counts @ np.log(others)) / n
  best = Exposures(others[action].astype(np.float32), share, 1, np.inf, overall, overall)
  if time is None:
    return best
  periods = max(1, min(_PERIODS, 2 ** int(np.log2(max(1, min(n, _CELLS // num_items))))))
  edges = np.quantile(time, np.arange(1, periods) / periods)
  period = np.searchsorted(edges, time, side="right")  # rows of one time share a period
  cells = np.bincount(period * num_items + action, minlength=periods * num_items)
  cells = cells.reshape(periods, num_items)
  while periods > 1:
    size, (when, item) = cells.sum(axis=1), np.nonzero(cells)
    rows = cells[when, item]
    for strength in _STRENGTHS:
      values = (rows - 1 + strength * others[item]) / (size[when] - 1 + strength)
      likelihood = float(rows @ np.log(values)) / n
      if likelihood > best.log_likelihood:
        table = np.zeros(cells.shape, np.float32)
        table[when, item] = values
        last = (cells[-1] + strength * share) / (size[-1] + strength)
        found = table[period, action], last, periods, strength, likelihood, overall
        best = Exposures(*found)
    periods, period = periods // 2, period // 2
    cells = cells.reshape(periods, 2, num_items).sum(axis=1)
  return best
