"""Learned clauses: the time to learn them, and of a query over an inverted index.

  python -m benchmarks.casmos
  python -m benchmarks.casmos --items 3883 100000 --clauses 1000 --rows 1000000

The truth is a query of random clauses; rows are drawn at random and liked by its scores. Times are
of the processor, on one thread; those of a query are medians over users. `touched` is the share of
the index's entries that a query reads, `passed` the share of the items that it finds; the threshold
lets a user's best 30 items through.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.special import expit

from tf_twostage.casmos import learning
from tf_twostage.casmos.index import InvertedIndex

USERS, QUERIES, K = 5000, 200, 30
USER_FEATURES = {"job": (30, 1), "place": (50, 1), "age": (10, 1), "words": (100, 5)}
ITEM_FEATURES = {"genre": (50, 3), "country": (40, 1), "year": (60, 1)}


def side(features: dict[str, tuple[int, int]], rows: int, draw: np.random.Generator):
  """A matrix of rows that meet some values of each feature, and the terms."""
  blocks, terms = [], []
  for name, (size, count) in features.items():
    column = draw.integers(size, size=(rows, count)).ravel()
    row = np.repeat(np.arange(rows), count)
    met = scipy.sparse.coo_array((np.ones(len(row)), (row, column)), (rows, size)).tocsr()
    met.data[:] = 1
    blocks.append(met)
    terms += [((name, str(value)),) for value in range(size)]
  return scipy.sparse.hstack(blocks, format="csr"), terms


def measured(num_items: int, num_clauses: int, rows: int) -> dict[str, float]:
  draw = np.random.default_rng(0)
  users, items = side(USER_FEATURES, USERS, draw), side(ITEM_FEATURES, num_items, draw)
  shape = users[0].shape[1], items[0].shape[1]
  chosen = draw.choice(shape[0] * shape[1], num_clauses, replace=False)
  weights = draw.uniform(0.5, 2, num_clauses)
  true = scipy.sparse.coo_array((weights, np.divmod(chosen, shape[1])), shape).tocsr()
  user, item = draw.integers(USERS, size=rows), draw.integers(num_items, size=rows)
  scores = (users[0][user] @ true).multiply(items[0][item]).sum(axis=1)
  liked = draw.random(rows) < expit(scores - 2)
  start = time.process_time()
  pairs = learning.Pairs(user, item, liked, np.ones(rows))
  learned = learning.learn(pairs, users, items, support=20, l1=1e-4, most=num_clauses)
  seconds = time.process_time() - start

  place = {term: i for i, term in enumerate(items[1])}
  of_user = {term: i for i, term in enumerate(users[1])}
  found = np.zeros((shape[0] + 1, shape[1]))
  for clause in learned:
    found[of_user.get(clause.user, shape[0]), place[clause.item]] = clause.weight
  index = InvertedIndex(items[0])
  times, touched, passed = [], [], []
  for user in range(QUERIES):
    met = np.append(users[0][[user]].toarray()[0], 1.0)
    threshold = np.partition(items[0] @ (met @ found), -K)[-K]
    start = time.process_time()
    answer = index.search(met @ found, threshold, K)
    times.append(time.process_time() - start)
    touched.append(answer.touched / items[0].nnz)
    passed.append(len(answer.items) / num_items)
  return {
    "items": num_items,
    "clauses": len(learned),
    "rows": rows,
    "learning_s": seconds,
    "query_ms": 1e3 * float(np.median(times)),
    "touched": float(np.mean(touched)),
    "passed": float(np.mean(passed)),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--items", type=int, nargs="+", default=[3883, 100_000])
  parser.add_argument("--clauses", type=int, default=1000)
  parser.add_argument("--rows", type=int, default=1_000_000)
  asked = parser.parse_args()
  table = pd.DataFrame([measured(n, asked.clauses, asked.rows) for n in asked.items])
  print(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
  main()
