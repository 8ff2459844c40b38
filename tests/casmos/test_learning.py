import dataclasses

import numpy as np
import pytest
import scipy.sparse
from scipy.special import expit

from tests.casmos import small
from tf_twostage.casmos import learning
from tf_twostage.casmos.clauses import Query
from tf_twostage.errors import InputError


@pytest.fixture(scope="module")
def world():
  return small.world()


@pytest.fixture(scope="module")
def truth(world):
  return world.scores(Query(small.TRUTH))


@pytest.fixture(scope="module")
def pairs(truth):
  return small.pairs(truth)


def learn(world, pairs, **settings):
  settings = {"support": 20, "l1": 1e-3, "most": 100} | settings
  return learning.learn(pairs, world.side("user"), world.side("item"), **settings)


@pytest.fixture(scope="module")
def learned(world, pairs):
  return learn(world, pairs)


def sides(clauses):
  return {(c.user, c.item) for c in clauses}


def test_the_largest_weights_are_those_of_the_true_clauses(learned):
  best = sorted(learned, key=lambda c: -c.weight)[: len(small.TRUTH)]
  assert len(sides(best) & sides(small.TRUTH)) >= 0.9 * len(small.TRUTH)


def test_recall_at_30_is_that_of_the_true_clauses_within_two_points(world, truth, learned):
  liked = expit(truth - 2)

  def recall(scores):
    best = np.argsort(-scores, axis=1, kind="stable")[:, :30]
    return np.take_along_axis(liked, best, axis=1).sum() / liked.sum()

  assert recall(world.scores(Query(learned))) >= recall(truth) - 0.02


def test_weights_are_positive(learned):
  assert min(c.weight for c in learned) > 0


def test_the_order_of_rows_does_not_matter(world, pairs, learned):
  order = np.random.default_rng(5).permutation(len(pairs.user))
  columns = {f.name: getattr(pairs, f.name)[order] for f in dataclasses.fields(pairs)}
  assert learn(world, learning.Pairs(**columns)) == learned


def test_clauses_that_match_too_few_positive_pairs_are_left_out(world, pairs):
  found = learn(world, pairs, support=400, l1=0.0)
  (users, user_terms), (items, item_terms) = world.side("user"), world.side("item")
  for clause in found:
    met = np.ones(len(pairs.user)) * pairs.label
    if clause.user:
      met *= users[:, [user_terms.index(clause.user)]].toarray()[pairs.user, 0]
    met *= items[:, [item_terms.index(clause.item)]].toarray()[pairs.item, 0]
    assert met.sum() >= 400


def test_at_most_so_many_clauses_are_kept(world, pairs, learned):
  found = learn(world, pairs, most=5)
  assert len(found) == 5
  assert sides(found) < sides(learned)


def test_conjunctions_of_two_values_are_found(world):
  both = (("job", "artist"), ("place", "north"))
  clause = dataclasses.replace(small.TRUTH[0], user=both, weight=3.0)
  pairs = small.pairs(world.scores(Query((clause,))))
  found = learn(world, pairs, l1=3e-3, conjunctions=True)
  best = max(found, key=lambda c: c.weight)
  assert (best.user, best.item) == (both, clause.item)


def test_matches_are_the_products_of_both_terms(monkeypatch):
  monkeypatch.setattr(learning, "_ENTRIES", 7)  # several parts
  draw = np.random.default_rng(3)
  users, items = draw.random((6, 4)) < 0.5, draw.random((5, 3)) < 0.5
  user, item = draw.integers(6, size=50), draw.integers(5, size=50)
  clauses = np.array([[0, 1], [1, 0], [1, 2], [3, 2]])
  expected = users[user][:, clauses[:, 0]] & items[item][:, clauses[:, 1]]
  sparse = [scipy.sparse.csr_array(m.astype(float)) for m in (users, items)]
  np.testing.assert_array_equal(learning.matches(*sparse, user, item, clauses).toarray(), expected)


def test_logistic_weight_of_one_clause_is_the_log_odds_ratio():
  # 30 of 40 matched pairs are liked, and 10 of 40 others: log(3) - log(1/3).
  met = np.repeat([1.0, 1.0, 0.0, 0.0], [30, 10, 10, 30])[:, np.newaxis]
  label = np.repeat([True, False, True, False], [30, 10, 10, 30])
  found = learning.logistic(scipy.sparse.csr_array(met), label, np.ones(80), 0.0)
  np.testing.assert_allclose(found, 2 * np.log(3), rtol=1e-3)
  opposite = learning.logistic(scipy.sparse.csr_array(met), ~label, np.ones(80), 0.0)
  assert opposite == 0


def test_nothing_frequent_is_refused_with_the_remedy(world, pairs):
  with pytest.raises(InputError, match=r"none of .* matches 100000 .* lower clause_support"):
    learn(world, pairs, support=100_000)
  with pytest.raises(InputError, match="clause_l1=10 leaves no clause"):
    learn(world, pairs, l1=10.0)
