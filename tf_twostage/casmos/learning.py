"""Which clauses a query has: a logistic regression with few weights, all of them positive [CaSMoS].

Every pair of a user's term and an item's term that is frequent among positive pairs is tried. The
L1 penalty leaves the weights of most at 0.

[CaSMoS] Borisyuk, Kenthapadi, Stein, Zhao. CaSMoS: A Framework for Learning Candidate Selection
Models over Structured Queries and Documents. KDD 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from scipy.optimize import minimize
from scipy.special import expit

from tf_twostage.casmos.clauses import Clause
from tf_twostage.casmos.terms import Term
from tf_twostage.errors import InputError

_ENTRIES = 1 << 22  # matches of terms that are in memory at a time

Side = tuple[scipy.sparse.csr_array, list[Term]]  # rows x terms, 1 where a row meets a term


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs to learn from: rows of the users and of the items, labels and weights, [m] each."""

  user: np.ndarray
  item: np.ndarray
  label: np.ndarray
  weight: np.ndarray

  def merged(self) -> Pairs:
    """The same pairs in an order of their own, equal ones once, with the sum of their weights."""
    key = np.stack([self.user, self.item, self.label])
    (user, item, label), place = np.unique(key, axis=1, return_inverse=True)
    # Sorted sums, which do not depend on the order of rows.
    order = np.lexsort([self.weight, place.ravel()])
    weight = np.bincount(place.ravel()[order], self.weight[order])
    return Pairs(user, item, label.astype(bool), weight)


def learn(
  pairs: Pairs,
  users: Side,
  items: Side,
  *,
  support: int,
  l1: float,
  most: int,
  conjunctions: bool = False,
) -> tuple[Clause, ...]:
  """The clauses that tell positive pairs from others.

  Args:
    pairs: positive and other pairs.
    users, items: what they meet.
    support: positive pairs that a clause matches at least.
    l1: penalty on the sum of the weights, beside the mean loss of a pair.
    most: how many clauses stay, those with the largest shares of the positive pairs' scores.
    conjunctions: whether a side of a clause may ask for two values at once.

  Raises:
    InputError: nothing is frequent enough.
  """
  pairs = pairs.merged()
  liked = pairs.label
  if conjunctions:
    users = _with_conjunctions(users, pairs.user[liked], support)
    items = _with_conjunctions(items, pairs.item[liked], support)
  always: Side = scipy.sparse.csr_array(np.ones((users[0].shape[0], 1))), [()]
  of_users, user_terms = _beside(always, users)
  of_items, item_terms = items
  counts = (of_users[pairs.user[liked]].T @ of_items[pairs.item[liked]]).tocoo()
  frequent = counts.data >= support
  tried = _ordered(counts.row[frequent], counts.col[frequent])
  if not len(tried):
    raise InputError(
      f"casmos: none of {counts.nnz:,} clauses matches {support} of {liked.sum():,} positive pairs;"
      " lower clause_support"
    )
  met = matches(of_users, of_items, pairs.user, pairs.item, tried)
  weights = logistic(met, liked, pairs.weight, l1)
  credit = weights * (met.T @ (pairs.weight * liked))
  kept = np.sort(np.argsort(-credit, kind="stable")[: min(most, int((credit > 0).sum()))])
  if not len(kept):
    raise InputError(f"casmos: clause_l1={l1:g} leaves no clause; lower it")
  if len(kept) < (credit > 0).sum():
    weights[kept] = logistic(met[:, kept], liked, pairs.weight, l1)
  kept = kept[weights[kept] > 0]
  return tuple(
    Clause(user_terms[user], item_terms[item], float(weight))
    for (user, item), weight in zip(tried[kept].tolist(), weights[kept], strict=True)
  )


def logistic(
  met: scipy.sparse.csr_array, label: np.ndarray, weight: np.ndarray, l1: float
) -> np.ndarray:
  """Weights w >= 0, [C], that minimise the mean of log(1 + exp(-y (Xw + b))) plus l1 Σ w.

  Args:
    met: X, [m, C].
    label: [m] bool, y as ±1.
    weight: [m], of the pairs.
    l1: λ.
  """
  sign, share = np.where(label, 1.0, -1.0), weight / weight.sum()

  def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
    margin = sign * (met @ at[:-1] + at[-1])
    slope = -share * sign * expit(-margin)
    gradient = np.append(met.T @ slope + l1, slope.sum())
    return share @ np.logaddexp(0, -margin) + l1 * at[:-1].sum(), gradient

  bounds = [(0, None)] * met.shape[1] + [(None, None)]
  options = {"maxiter": 300, "maxfun": 400, "ftol": 1e-9, "gtol": 1e-8}
  start = np.zeros(met.shape[1] + 1)
  return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x[:-1]


def matches(
  users: scipy.sparse.csr_array,
  items: scipy.sparse.csr_array,
  user: np.ndarray,
  item: np.ndarray,
  clauses: np.ndarray,
) -> scipy.sparse.csr_array:
  """1 where pairs meet both terms of a clause: [m, C].

  Args:
    users, items: rows x terms.
    user, item: [m], rows of the pairs.
    clauses: [C, 2], a user's and an item's term each, sorted.
  """
  codes = clauses[:, 0] * items.shape[1] + clauses[:, 1]
  users, items = (_only(m, used) for m, used in zip((users, items), clauses.T, strict=True))
  sizes = np.diff(users.indptr)[user].astype(np.int64) * np.diff(items.indptr)[item]
  cuts = np.searchsorted(np.cumsum(sizes), np.arange(_ENTRIES, sizes.sum(), _ENTRIES))
  parts = []
  for of_user, of_item in zip(np.split(user, cuts), np.split(item, cuts), strict=True):
    width = np.diff(items.indptr)[of_item]
    size = np.diff(users.indptr)[of_user].astype(np.int64) * width
    row = np.repeat(np.arange(len(size)), size)
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    left, right = np.divmod(place, width[row])
    code = users.indices[users.indptr[of_user][row] + left].astype(np.int64) * items.shape[1]
    code += items.indices[items.indptr[of_item][row] + right]
    column = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
    found = codes[column] == code
    pointers = np.append(0, np.cumsum(np.bincount(row[found], minlength=len(size))))
    ones = np.ones(int(found.sum()))
    parts.append(scipy.sparse.csr_array((ones, column[found], pointers), (len(size), len(codes))))
  return scipy.sparse.vstack(parts, format="csr")


def _only(matrix: scipy.sparse.csr_array, columns: np.ndarray) -> scipy.sparse.csr_array:
  """The matrix without entries outside of some columns; its shape stays."""
  used = np.zeros(matrix.shape[1])
  used[columns] = 1
  kept = (matrix @ scipy.sparse.diags_array(used)).tocsr()
  kept.eliminate_zeros()
  return kept


def _with_conjunctions(side: Side, rows: np.ndarray, support: int) -> Side:
  """The side with terms of two conditions that `support` of `rows` meet together."""
  matrix, terms = side
  counts = scipy.sparse.triu(matrix[rows].T @ matrix[rows], k=1, format="coo")
  frequent = counts.data >= support
  if not frequent.any():
    return side
  both = _ordered(counts.row[frequent], counts.col[frequent])
  all_rows = np.arange(matrix.shape[0])
  met = matches(matrix, matrix, all_rows, all_rows, both)
  return _beside(side, (met, [terms[a] + terms[b] for a, b in both.tolist()]))


def _ordered(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Pairs of numbers, sorted: [C, 2] int64."""
  order = np.lexsort([second, first])
  return np.stack([first[order], second[order]], axis=1).astype(np.int64)


def _beside(*sides: Side) -> Side:
  matrices: Sequence[scipy.sparse.csr_array] = [matrix for matrix, _ in sides]
  return scipy.sparse.hstack(matrices, format="csr"), [t for _, terms in sides for t in terms]
