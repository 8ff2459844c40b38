"""Exposure by popularity and time."""

import numpy as np
import pytest

from tf_twostage.evaluation import exposures


def log_of(probabilities, rows, seed=0):
  """Items [n] and times [n] of rows whose probabilities [T, N] change at equal intervals."""
  rng = np.random.default_rng(seed)
  periods, items = probabilities.shape
  time = np.sort(rng.random(rows)) * periods
  chance = probabilities[time.astype(int)].cumsum(axis=1)
  return (chance < rng.random((rows, 1))).sum(axis=1).clip(max=items - 1), time


def test_without_times_it_is_the_share_of_the_other_rows():
  action = np.array([0, 0, 0, 1])
  found = exposures.estimate(action, None, num_items=3)
  extra = 0.1 * 4 / 3  # a tenth of the rows, for all items together
  total = 3 + 3 * extra
  np.testing.assert_allclose(found.values, [(2 + extra) / total] * 3 + [extra / total], rtol=1e-6)
  np.testing.assert_allclose(found.latest, (np.array([3, 1, 0]) + extra) / (total + 1))
  assert found.periods == 1


def test_popularity_that_does_not_change_needs_no_periods():
  action, time = log_of(np.array([[0.7, 0.2, 0.1]] * 2), 2000)
  found = exposures.estimate(action, time, 3)
  assert found.log_likelihood - found.share_log_likelihood < 1e-3
  np.testing.assert_allclose(found.latest, [0.7, 0.2, 0.1], atol=0.05)


def test_popularity_that_changes_is_recovered():
  truth = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
  action, time = log_of(truth, 8000)
  found = exposures.estimate(action, time, 3)
  assert found.periods >= 4
  error = np.abs(found.values - truth[time.astype(int), action])
  assert np.median(error) < 0.03
  np.testing.assert_allclose(found.latest, truth[-1], atol=0.05)


@pytest.mark.parametrize("time", [None, np.zeros(50), np.arange(50.0)])
def test_exposures_are_probabilities(time):
  action = np.random.default_rng(0).integers(7, size=50)
  found = exposures.estimate(action, time, 9)
  assert (found.values > 0).all()
  assert (found.values <= 1).all()
  assert found.latest.sum() == pytest.approx(1)


def test_every_row_is_predicted_from_the_others():
  """Against an enumeration of rows, periods and strengths."""
  rng, items = np.random.default_rng(1), 3
  action, time = rng.integers(items, size=24), np.arange(24.0)
  action[12:] = 0

  def share(rows, item):
    extra = 0.1 * 24 / items
    return (np.sum(rows == item) + extra) / (len(rows) + extra * items)

  def predicted(periods, strength):
    period = (time * periods // 24).astype(int)
    found = []
    for i in range(24):
      others = np.arange(24) != i
      near = action[others & (period == period[i])]
      overall = share(action[others], action[i])
      if np.isinf(strength):
        found.append(overall)
      else:
        total = len(near) + strength
        found.append((np.sum(near == action[i]) + strength * overall) / total)
    return np.array(found)

  tried = [(1, np.inf), *((p, s) for p in (2, 4, 8, 16) for s in exposures._STRENGTHS)]
  best = max(tried, key=lambda setting: np.log(predicted(*setting)).mean())
  found = exposures.estimate(action, time, items)
  assert (found.periods, found.strength) == best
  np.testing.assert_allclose(found.values, predicted(*best), rtol=1e-6)
