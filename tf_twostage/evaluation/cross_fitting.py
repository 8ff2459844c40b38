"""Out-of-fold predictions: a reward model must not be asked about the rows it learned from.

A model that has seen a row's reward predicts it too well, and DR's correction r - rhat vanishes
together with its unbiasedness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError
from tf_twostage.evaluation.rows import check_finite, check_groups


def assign_folds(
  num_rows: int, num_folds: int = 5, *, groups: Any = None, seed: int = 0
) -> np.ndarray:
  """Deals rows into folds of nearly equal size, whole groups together.

  Groups go out from the largest to the smallest, in random order among equals, to the folds in
  turn: sizes of folds differ by at most the largest group.

  Args:
    num_rows: n, > 0.
    num_folds: F, at least 2 and at most the number of groups.
    groups: [n] ids that must not be split; None: each row is its own group.
    seed: of the deal.

  Returns:
    [n] int in [0, F).

  Raises:
    InputError: there are fewer groups than folds, or an argument is out of range.
  """
  ids = np.arange(num_rows) if groups is None else check_groups(groups, num_rows)
  codes = pd.factorize(ids)[0]
  sizes = np.bincount(codes)
  if not 2 <= num_folds <= len(sizes):
    raise InputError(
      f"num_folds must be at least 2 and at most the number of rows or groups, {len(sizes)}; got"
      f" {num_folds}"
    )
  order = np.lexsort((np.random.default_rng(seed).random(len(sizes)), -sizes))
  fold_of_group = np.empty(len(sizes), int)
  fold_of_group[order] = np.arange(len(sizes)) % num_folds
  return fold_of_group[codes]


def cross_fit(
  fit_predict: Callable[[np.ndarray, np.ndarray], Any],
  num_rows: int,
  num_folds: int = 5,
  *,
  groups: Any = None,
  seed: int = 0,
) -> np.ndarray:
  """Predictions of every row by a model that was fitted without its fold.

  Args:
    fit_predict: from (train_rows, predict_rows), ascending row indices, to the predictions of the
      latter: [m, N] of the catalogue, or where that does not fit in memory the two columns that
      `PolicyRows` wants, [m, 2]; any [m, ...] will do. Fits a fresh model at each call.
    num_rows, num_folds, groups, seed: as for `assign_folds`.

  Returns:
    [n, ...], in the order of the rows and with the type of the first prediction.

  Raises:
    InputError: as for `assign_folds`; predictions have the wrong shape or are not finite.

  References:
    Chernozhukov et al., Double/debiased machine learning, Econometrics Journal 21, 2018,
      definition 3.1.
  """
  folds = assign_folds(num_rows, num_folds, groups=groups, seed=seed)
  out: np.ndarray | None = None
  for fold in range(num_folds):
    rows = np.flatnonzero(folds == fold)
    predicted = np.asarray(fit_predict(np.flatnonzero(folds != fold), rows))
    if out is None:
      out = np.empty((num_rows, *predicted.shape[1:]), predicted.dtype)
    if predicted.shape != (len(rows), *out.shape[1:]):
      raise InputError(
        f"fit_predict returned {predicted.shape} for {len(rows)} rows of fold {fold}; return one"
        f" prediction a row, {(len(rows), *out.shape[1:])}"
      )
    check_finite("fit_predict", predicted.reshape(len(rows), -1).sum(axis=1), "mend the model")
    out[rows] = predicted
  assert out is not None  # there are at least two folds
  return out
