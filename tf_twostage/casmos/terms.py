"""Terms: what one side of a clause asks of a user or of an item.

A condition is a feature with a value: a text of its vocabulary, a position of a sparse vector, or a
range of numbers. A term is met where all of its conditions are; one without conditions always is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf

from tf_twostage.data.schema import Bag, Categorical, Embedding, Feature, Numeric, SparseVector
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import Codes

_BINS = 8  # ranges of a number, of about as many rows each

Range = tuple[float | None, float | None]  # from, below; None: no limit
Condition = tuple[str, str | int | Range]
Term = tuple[Condition, ...]


def values(features: Sequence[Feature], codes: Codes) -> tuple[scipy.sparse.csr_array, list[Term]]:
  """All conditions that rows of codes meet, as a matrix [rows, M] of ones and M terms of one each.

  Embeddings have no values to compare, and meet none.
  """
  rows = len(next(iter(codes.values())))
  blocks: list[scipy.sparse.csr_array] = []
  terms: list[Term] = []
  for f in features:
    if isinstance(f, Embedding):
      continue
    row, column, names = _values(f, codes)
    met = scipy.sparse.coo_array((np.ones(len(row)), (row, column)), (rows, len(names))).tocsr()
    met.data[:] = 1  # of a value that a bag repeats, too
    blocks.append(met)
    terms += [((f.name, name),) for name in names]
  return scipy.sparse.hstack(blocks, format="csr"), terms


def _values(f: Feature, codes: Codes) -> tuple[np.ndarray, np.ndarray, Sequence]:
  """Rows and places of the values of a feature, and all of its values."""
  if isinstance(f, Numeric):
    numbers = np.asarray(codes[f.name], np.float64)
    cuts = np.unique(np.quantile(numbers, np.arange(1, _BINS) / _BINS, method="lower"))
    limits = [None, *(float(cut * f.scale + f.offset) for cut in cuts), None]
    bins = np.searchsorted(cuts, numbers, side="right")
    return np.arange(len(numbers)), bins, list(itertools.pairwise(limits))
  if isinstance(f, SparseVector):
    row, place = np.nonzero(np.asarray(codes[f.weights]))
    return row, np.asarray(codes[f.ids])[row, place], range(f.size)
  assert isinstance(f, Categorical)
  known = np.asarray(codes[f.name])
  known = known.reshape(len(known), -1) - _special(f)
  row, place = np.nonzero(known >= 0)
  return row, known[row, place], f.vocabulary


def _special(f: Categorical) -> int:
  """The code of the first value."""
  return 2 if isinstance(f, Bag) else 1


class TermMatcher(tf.Module):
  """Says which of T terms rows of codes meet.

  A value that was not in the data meets no condition.
  """

  def __init__(self, features: Sequence[Feature], terms: Sequence[Term]):
    """Raises: InputError: a condition has no such feature or value."""
    super().__init__()
    by_name = {f.name: f for f in features if not isinstance(f, Embedding)}
    conditions = sorted({c for term in terms for c in term}, key=repr)
    of_feature: dict[str, dict] = {}
    for place, (name, value) in enumerate(conditions):
      if name not in by_name:
        raise InputError(f"clauses: no feature {name!r} here; there are {', '.join(by_name)}")
      of_feature.setdefault(name, {})[value] = place + 1
    self._places = [_Places(by_name[name], found) for name, found in of_feature.items()]
    column = {condition: i + 1 for i, condition in enumerate(conditions)}
    width = max([1, *map(len, terms)])
    self._size = len(conditions) + 1
    # Column 0 collects what meets no condition, and the last one is always 1.
    parts = [[*(column[c] for c in term), *[self._size] * (width - len(term))] for term in terms]
    self._parts = tf.constant(np.reshape(parts, (len(terms), width)), tf.int32)

  def __call__(self, codes: Codes) -> tf.Tensor:
    """Returns 1 where a row meets a term and 0 elsewhere, [B, T] float32."""
    rows = tf.shape(next(iter(codes.values())))[0]
    places = [tf.zeros([rows, 1], tf.int32), *(of(codes) for of in self._places)]
    found = tf.concat(places, axis=1)
    row = tf.repeat(tf.range(rows), tf.shape(found)[1])
    at = tf.stack([row, tf.reshape(found, [-1])], axis=1)
    met = tf.tensor_scatter_nd_max(tf.zeros([rows, self._size]), at, tf.ones(tf.shape(row)))
    met = tf.concat([met, tf.ones([rows, 1])], axis=1)
    return functools.reduce(
      tf.multiply, [tf.gather(met, part, axis=1) for part in tf.unstack(self._parts, axis=1)]
    )


class _Places(tf.Module):
  """The places of a feature's conditions that rows meet, [B, any] int32; 0 stands for none."""

  def __init__(self, feature: Feature, places: dict):
    super().__init__()
    self._feature = f = feature
    if isinstance(f, Numeric):
      _require_known(f, [value for value in places if not isinstance(value, tuple)])
      limits = [
        [np.inf * sign if limit is None else (limit - f.offset) / f.scale for limit in ends]
        for sign, ends in ((-1, [v[0] for v in places]), (1, [v[1] for v in places]))
      ]
      self._limits = tf.constant(limits, tf.float32)
      self._places = tf.constant([*places.values()], tf.int32)
      return
    assert not isinstance(f, Embedding)
    vocabulary = range(f.size) if isinstance(f, SparseVector) else f.vocabulary
    code = {value: i for i, value in enumerate(vocabulary)}
    _require_known(f, [value for value in places if value not in code])
    first = 0 if isinstance(f, SparseVector) else _special(f)
    table = np.zeros(first + len(code), np.int32)
    for value, place in places.items():
      table[first + code[value]] = place
    self._table = tf.constant(table)

  def __call__(self, codes: Codes) -> tf.Tensor:
    f = self._feature
    if isinstance(f, Numeric):
      number = codes[f.name][:, tf.newaxis]
      inside = (number >= self._limits[0]) & (number < self._limits[1])
      return tf.where(inside, self._places, 0)
    if isinstance(f, SparseVector):
      return tf.where(codes[f.weights] != 0, tf.gather(self._table, codes[f.ids]), 0)
    places = tf.gather(self._table, codes[f.name])
    return places if isinstance(f, Bag) else places[:, tf.newaxis]


def _require_known(feature: Feature, wrong: Sequence) -> None:
  if wrong:
    raise InputError(
      f"clauses: feature {feature.name!r} has no value {wrong[0]!r}; correct the clause"
    )
