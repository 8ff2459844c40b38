"""Out-of-fold predictions: every row is predicted by a model that was fitted without it.

A model that has seen a row's reward predicts it too well: the correction r - rhat of DR vanishes,
and with it DR's unbiasedness.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from tf_twostage.errors import InputError, require
from tf_twostage.evaluation.rows import check_groups

Model = TypeVar("Model")


def assign_folds(
  num_rows: int, num_folds: int = 5, *, groups: Any = None, seed: int = 0
) -> np.ndarray:
  """Divides n rows into folds of nearly equal size that keep groups together: [n] in [0, F).

  Groups are dealt to the folds in turn, from the largest to the smallest, equal ones in random
  order. Sizes of folds differ by at most the largest group.
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
  fit: Callable[[int, np.ndarray], Model],
  predict: Callable[[Model, np.ndarray], Any],
  folds: np.ndarray,
) -> tuple[list[Model], np.ndarray]:
  """Fits a model without each fold and predicts the fold's rows with it.

  Args:
    fit: maps a fold's number and the rows of all other folds, ascending [m] int, to a new model.
    predict: maps a model and row numbers [m] to predictions [m, ...].
    folds: [n] int, from `assign_folds`.

  Returns:
    The models by fold, and predictions [n, ...] of each row by its fold's model.

  References:
    Chernozhukov et al., Double/debiased machine learning, Econometrics Journal 21, 2018,
      definition 3.1.
  """
  models = []
  out: np.ndarray | None = None
  for fold in range(folds.max() + 1):
    rows = np.flatnonzero(folds == fold)
    models.append(fit(fold, np.flatnonzero(folds != fold)))
    predicted = np.asarray(predict(models[-1], rows))
    if out is None:
      out = np.empty((len(folds), *predicted.shape[1:]), predicted.dtype)
    if predicted.shape != (len(rows), *out.shape[1:]):
      raise InputError(
        f"predict returned {predicted.shape} for {len(rows)} rows of fold {fold}; return one"
        f" prediction for each row, {(len(rows), *out.shape[1:])}"
      )
    finite = np.isfinite(predicted).reshape(len(rows), -1).all(axis=1)
    require(finite, "predict", "must be finite", "fix the model", numbers=rows)
    out[rows] = predicted
  assert out is not None  # there is at least one fold
  return models, out
