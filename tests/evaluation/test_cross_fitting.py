import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tf_twostage.errors import InputError
from tf_twostage.evaluation.cross_fitting import assign_folds, cross_fit
from tf_twostage.evaluation.estimators import DR
from tf_twostage.evaluation.off_policy import evaluate
from tf_twostage.evaluation.rows import PolicyRows

common = settings(max_examples=40, deadline=None, derandomize=True)


@common
@given(st.integers(2, 60), st.data())
def test_folds_of_rows_are_of_nearly_equal_size(num_rows, data):
  num_folds = data.draw(st.integers(2, num_rows))
  sizes = np.bincount(assign_folds(num_rows, num_folds), minlength=num_folds)
  assert len(sizes) == num_folds
  assert sizes.max() - sizes.min() <= 1


@common
@given(st.lists(st.integers(0, 9), min_size=2, max_size=80).filter(lambda g: len(set(g)) > 1))
def test_groups_stay_together_in_folds_that_differ_by_the_largest_at_most(groups):
  num_folds = min(3, len(set(groups)))
  folds = assign_folds(len(groups), num_folds, groups=groups)
  for group in set(groups):
    assert len(set(folds[np.array(groups) == group])) == 1
  sizes = np.bincount(folds, minlength=num_folds)
  assert sizes.min() > 0
  assert sizes.max() - sizes.min() <= np.bincount(groups).max()


def test_folds_are_seeded():
  one, same, other = (assign_folds(50, seed=s) for s in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()


@pytest.mark.parametrize("tail", [(), (2,), (3, 4)])
def test_predictions_are_out_of_fold_and_in_order(tail):
  rewards, calls = np.arange(10.0), []

  def fit_predict(train, rows):
    calls.append((train, rows))
    return np.broadcast_to(
      (rows + 100 * rewards[train].mean()).reshape(-1, *[1] * len(tail)), (len(rows), *tail)
    )

  folds = assign_folds(10, 3, groups=np.arange(10) // 2)
  _, out = cross_fit(lambda _, train: train, fit_predict, folds)
  assert out.shape == (10, *tail)
  for train, rows in calls:
    assert sorted([*train, *rows]) == list(range(10))
    assert not set(train // 2) & set(rows // 2)
    expected = rows + 100 * rewards[train].mean()
    np.testing.assert_allclose(out[rows].reshape(len(rows), -1)[:, 0], expected)
  assert len(calls) == 3


def test_a_model_that_saw_its_rows_spoils_doubly_robust_and_cross_fitting_mends_it():
  # Each row has a context of its own, so a model that saw it has learned its noise by heart and
  # predicts it for the logged action; the correction is then zero, and the value that of action 0.
  rng = np.random.default_rng(0)
  n = 4000
  actions = rng.integers(2, size=n)
  rewards = (rng.random(n) < np.where(actions, 0.7, 0.1)).astype(float)
  policy = np.broadcast_to([0.0, 1.0], (n, 2))  # truth: 0.7

  def memorise(train, rows):
    seen = np.isin(rows, train)
    mean = np.full((len(rows), 2), rewards[train].mean())
    mean[seen, actions[rows[seen]]] = rewards[rows[seen]]
    return mean

  def estimate(predicted):
    rows = PolicyRows.from_arrays(actions, rewards, np.full(n, 0.5), policy, predicted)
    return evaluate(rows, {"dr": DR()})[0]

  everything = np.arange(n)
  spoiled = estimate(memorise(everything, everything))
  mended = estimate(cross_fit(lambda _, train: train, memorise, assign_folds(n))[1])
  assert not spoiled.interval[0] < 0.7 < spoiled.interval[1]
  assert mended.interval[0] < 0.7 < mended.interval[1]


def fitted(predict):
  return cross_fit(lambda _, train: train, predict, assign_folds(10, 5))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: assign_folds(10, 1), "num_folds must be at least 2 and at most .*, 10; got 1"),
    (lambda: assign_folds(3, 4), "at most the number of rows or groups, 3; got 4"),
    (lambda: assign_folds(0, 2), "at most the number of rows or groups, 0; got 2"),
    (lambda: assign_folds(4, 3, groups=[1, 1, 2, 2]), "rows or groups, 2; got 3"),
    (lambda: assign_folds(4, 2, groups=[1, 2]), r"groups must be \[4\]"),
    (lambda: fitted(lambda t, r: np.zeros(3)), r"returned \(3,\) for 2 rows of fold 0"),
    (lambda: fitted(lambda t, r: 0.5), r"returned \(\) for 2 rows"),
    (
      lambda: fitted(lambda t, r: np.zeros((2, 3 + (0 in r)))),
      r"returned \(2, \d\) for 2 rows of fold \d; return one prediction for each row, \(2, \d\)",
    ),
    (
      lambda: fitted(lambda t, r: np.where(r == 4, np.nan, 0.5)),
      "predict must be finite; 1 of 2 rows .*first: row 4",
    ),
  ],
)
def test_bad_calls_are_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()
