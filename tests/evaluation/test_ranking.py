"""Ranking metrics against formulas, an oracle in plain loops, and properties."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tf_twostage.errors import InputError
from tf_twostage.evaluation import ranking

METRICS = ("precision", "recall", "ndcg")


def at_k(name, hits, relevant, k):
  return ranking.metrics_at_k(hits, np.asarray(relevant), k)[name]


def oracle(name, hits, relevant, k):
  """One user, by the definitions, rank by rank."""
  found, gain = 0, 0.0
  for rank, hit in enumerate(hits[:k], start=1):
    found += bool(hit)
    gain += bool(hit) / math.log2(rank + 1)
  if name == "precision":
    return found / k
  if name == "recall":
    return found / relevant
  return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, relevant) + 1))


@st.composite
def ranked_lists(draw):
  """Hits [U, L], relevant items a user (at least the hits, at least 1), and a cut-off."""
  shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 12)))
  hits = draw(hnp.arrays(np.bool_, shape))
  beyond = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, 20)))
  return hits, np.maximum(hits.sum(1) + beyond, 1), draw(st.integers(1, 15))


properties = settings(max_examples=40, deadline=None, derandomize=True)


def test_precision_divides_the_hits_in_the_top_by_k():
  hits = np.array([[True, False, True, True], [False, False, False, True]])
  np.testing.assert_allclose(at_k("precision", hits, [9, 9], 3), [2 / 3, 0 / 3])


def test_precision_divides_by_k_even_where_the_list_is_shorter():
  np.testing.assert_allclose(at_k("precision", np.array([[True, True]]), [2], 5), [2 / 5])


def test_recall_divides_the_hits_in_the_top_by_all_relevant_items():
  hits = np.array([[True, False, True, True], [False, True, False, False]])
  np.testing.assert_allclose(at_k("recall", hits, np.array([7, 1]), 3), [2 / 7, 1 / 1])


def test_ndcg_discounts_by_the_log_of_the_rank():
  hits = np.array([[False, True, True]])
  dcg = 1 / math.log2(2 + 1) + 1 / math.log2(3 + 1)
  ideal = 1 / math.log2(1 + 1) + 1 / math.log2(2 + 1) + 1 / math.log2(3 + 1)
  np.testing.assert_allclose(at_k("ndcg", hits, np.array([9]), 3), [dcg / ideal])


def test_ndcg_ideal_is_cut_at_the_number_of_relevant_items():
  hits = np.array([[False, True, False]])
  dcg, ideal = 1 / math.log2(2 + 1), 1 / math.log2(1 + 1)
  np.testing.assert_allclose(at_k("ndcg", hits, np.array([1]), 3), [dcg / ideal])


def test_ndcg_ideal_is_cut_at_k_not_at_the_length_of_the_list():
  hits = np.array([[True, True]])
  ideal = sum(1 / math.log2(rank + 1) for rank in (1, 2, 3))
  dcg = 1 / math.log2(1 + 1) + 1 / math.log2(2 + 1)
  np.testing.assert_allclose(at_k("ndcg", hits, np.array([5]), 3), [dcg / ideal])


@pytest.mark.parametrize("name", METRICS)
@properties
@given(ranked_lists())
def test_metric_agrees_with_the_oracle(name, ranked):
  hits, relevant, k = ranked
  expected = [oracle(name, row, n, k) for row, n in zip(hits, relevant, strict=True)]
  np.testing.assert_allclose(at_k(name, hits, relevant, k), expected, rtol=1e-12)


@pytest.mark.parametrize("name", METRICS)
@properties
@given(ranked_lists())
def test_metric_lies_between_0_and_1(name, ranked):
  values = at_k(name, *ranked)
  assert ((values >= 0) & (values <= 1 + 1e-12)).all()


@properties
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_relevant_items_in_front_give_ndcg_1(length, relevant, k):
  hits = (np.arange(max(length, k)) < relevant)[None]
  np.testing.assert_allclose(at_k("ndcg", hits, np.array([relevant]), k), [1.0])


@properties
@given(ranked_lists(), st.randoms(use_true_random=False))
def test_precision_and_recall_ignore_the_order_inside_the_top(ranked, random):
  hits, relevant, k = ranked
  order = list(range(min(k, hits.shape[1])))
  random.shuffle(order)
  mixed = np.concatenate([hits[:, order], hits[:, k:]], axis=1)
  for name in ("precision", "recall"):
    np.testing.assert_array_equal(at_k(name, mixed, relevant, k), at_k(name, hits, relevant, k))


@properties
@given(ranked_lists())
def test_recall_never_falls_as_k_grows(ranked):
  hits, relevant, k = ranked
  assert (at_k("recall", hits, relevant, k + 1) >= at_k("recall", hits, relevant, k)).all()


@properties
@given(ranked_lists())
def test_ndcg_rises_when_a_hit_moves_up_one_rank(ranked):
  hits, relevant, _ = ranked
  length = hits.shape[1]
  for rank in range(1, length):
    movable = hits[:, rank] & ~hits[:, rank - 1]
    up = hits.copy()
    up[movable, rank], up[movable, rank - 1] = False, True
    before, after = (at_k("ndcg", h, relevant, length) for h in (hits, up))
    assert (after[movable] > before[movable]).all()


@pytest.mark.parametrize("name", ["recall", "ndcg"])
def test_a_user_without_relevant_items_has_no_value(name):
  values = at_k(name, np.array([[False, False], [True, False]]), np.array([0, 1]), 2)
  np.testing.assert_array_equal(np.isnan(values), [True, False])


def test_summary_averages_over_the_users_with_a_relevant_item_only():
  hits = np.array([[True, False], [False, False], [False, True]])
  relevant = np.array([2, 0, 1])
  summary = ranking.summarise(hits, relevant, ks=(1, 2))
  ideal_of_2 = 1 + 1 / math.log2(3)
  expected = {
    "precision@1": (1 + 0) / 2,
    "precision@2": (1 / 2 + 1 / 2) / 2,
    "recall@1": (1 / 2 + 0 / 1) / 2,
    "recall@2": (1 / 2 + 1 / 1) / 2,
    "ndcg@1": (1 + 0) / 2,
    "ndcg@2": (1 / ideal_of_2 + 1 / math.log2(3)) / 2,
  }
  assert summary == pytest.approx(expected)


def test_summary_has_every_metric_at_every_default_k():
  summary = ranking.summarise(np.array([[True]]), np.array([1]))
  assert set(summary) == {f"{m}@{k}" for m in ("precision", "recall", "ndcg") for k in (1, 5, 10)}


def test_summary_without_any_relevant_item_is_refused():
  with pytest.raises(InputError, match="none of 2 users"):
    ranking.summarise(np.zeros([2, 3], bool), np.zeros(2, int))


def test_hits_look_up_the_relevance_of_each_rank_and_miss_on_padding():
  relevance = np.array([[True, False, True], [True, True, False]])
  ids = np.array([[2, 1, 0], [1, -1, -1]])
  expected = [[True, False, True], [True, False, False]]  # user 1: item 0 is relevant, -1 is none
  np.testing.assert_array_equal(ranking.hits_from_ids(ids, relevance), expected)


@properties
@given(st.integers(1, 8), st.integers(1, 8), st.randoms(use_true_random=False))
def test_hits_agree_with_the_oracle(num_items, length, random):
  relevance = np.array([[random.random() < 0.5 for _ in range(num_items)] for _ in range(3)])
  lists = [random.sample(range(num_items), min(length, num_items)) for _ in range(3)]
  ids = np.array([row + [-1] * (length - len(row)) for row in lists])
  expected = [[i >= 0 and relevance[u, i] for i in row] for u, row in enumerate(ids)]
  np.testing.assert_array_equal(ranking.hits_from_ids(ids, relevance), expected)


@pytest.mark.parametrize(
  ("ids", "relevance", "message"),
  [
    (np.zeros(3, int), np.ones([3, 4], bool), "do not fit"),
    (np.zeros([2, 1], int), np.ones([3, 4], bool), "do not fit"),
    (np.zeros([3, 1]), np.ones([3, 4], bool), "ids must be int"),
    (np.zeros([3, 1], int), np.ones([3, 4]), "relevance bool"),
    (
      np.array([[0, 4]]),
      np.ones([1, 4], bool),
      "must be below 4, the size of the catalogue; 1 of 2",
    ),
    (np.array([[0, -2]]), np.ones([1, 4], bool), "first: id 1, value '-2'"),
    (
      np.array([[0, 1], [3, 3]]),
      np.ones([2, 4], bool),
      "must not repeat for a user; 1 of 2.*row 1",
    ),
  ],
)
def test_ids_that_do_not_fit_are_refused(ids, relevance, message):
  with pytest.raises(InputError, match=message):
    ranking.hits_from_ids(ids, relevance)


@pytest.mark.parametrize(
  ("hits", "k", "message"),
  [
    (np.ones(3, bool), 1, "hits must be"),
    (np.ones([1, 3]), 1, "hits must be"),
    (np.ones([1, 3], bool), 0, "k must be at least 1"),
  ],
)
def test_bad_hits_or_k_are_refused(hits, k, message):
  with pytest.raises(InputError, match=message):
    ranking.metrics_at_k(hits, np.array([3]), k)


@pytest.mark.parametrize(
  ("relevant", "message"),
  [
    (np.array([3]), "num_relevant must be"),
    (np.array([3.0, 3.0]), "num_relevant must be"),
    (np.array([3, 1]), "must not be below the number of hits; 1 of 2 .*row 1"),
  ],
)
def test_bad_counts_are_refused(relevant, message):
  with pytest.raises(InputError, match=message):
    ranking.metrics_at_k(np.array([[True, False], [True, True]]), relevant, 1)
