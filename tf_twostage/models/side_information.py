"""Features of users or items as columns of numbers, for models that are linear in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_twostage.data.schema import Bag, Embedding, Feature, Id, ItemSequence, Numeric, SparseVector
from tf_twostage.models.encoders import Codes

MIN_SHARE = 0.002  # of the rows that have a value, for it to become a column
MAX_VALUES = 512  # of a feature


def feature_matrix(features: Sequence[Feature], codes: Codes) -> np.ndarray:
  """Codes of users or items as columns, [n, F] float64; ids and sequences have none.

  A category is a 1 in its column, a bag the share of each value, a sparse vector its weights. A
  number is standardised, and a given vector divided by the root of its width. The most frequent
  values of a feature have columns, up to `MAX_VALUES`, and none rarer than `MIN_SHARE`.
  """
  count = len(next(iter(codes.values())))
  parts = [np.zeros((count, 0))]
  for f in features:
    if isinstance(f, Id | ItemSequence):
      continue
    if isinstance(f, Numeric):
      values = np.asarray(codes[f.name], np.float64)
      parts.append(((values - values.mean()) / (values.std() or 1.0))[:, np.newaxis])
    elif isinstance(f, Embedding):
      parts.append(np.asarray(codes[f.name], np.float64) / f.width**0.5)
    elif isinstance(f, SparseVector):
      weights = np.asarray(codes[f.weights], np.float64)
      parts.append(_frequent(np.asarray(codes[f.ids]), weights, f.size))
    else:
      values = np.asarray(codes[f.name]).reshape(count, -1)
      first = 2 if isinstance(f, Bag) else 1  # lower codes are padding and unknown values
      known = values >= first
      length = np.maximum(known.sum(axis=1, keepdims=True), 1)
      parts.append(_frequent(np.where(known, values - first, 0), known / length, len(f.vocabulary)))
  return np.concatenate(parts, axis=1)


def _frequent(positions: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
  """Sums of weights at positions [n, L] in [0, size), of frequent positions: [n, F]."""
  used = weights != 0
  counts = np.bincount(positions[used], minlength=size)
  frequent = np.argsort(-counts, kind="stable")[:MAX_VALUES]
  chosen = np.sort(frequent[counts[frequent] >= MIN_SHARE * len(positions)])
  column = np.full(size, -1)
  column[chosen] = np.arange(len(chosen))
  out = np.zeros((len(positions), len(chosen)))
  rows, at = np.nonzero(used & (column[positions] >= 0))
  np.add.at(out, (rows, column[positions[rows, at]]), weights[rows, at])
  return out
