import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_twostage.casmos.index import InvertedIndex


@given(st.integers(0, 10_000), st.floats(0.01, 8.0), st.sampled_from([None, 1, 5]))
def test_the_index_finds_what_scoring_everything_finds(seed, threshold, k):
  draw = np.random.default_rng(seed)
  items = draw.random((40, 12)) < 0.2
  query = draw.integers(1, 8, 12) / 4 * (draw.random(12) < 0.6)
  scores = items @ query
  order = np.lexsort([np.arange(40), -scores])
  expected = order[scores[order] >= threshold][:k]
  found = InvertedIndex(items).search(query, threshold, k)
  np.testing.assert_array_equal(found.items, expected)
  np.testing.assert_allclose(found.scores, scores[expected])


def test_candidates_fall_as_the_threshold_rises():
  draw = np.random.default_rng(0)
  index, query = InvertedIndex(draw.random((500, 30)) < 0.2), draw.random(30)
  found = [index.search(query, threshold) for threshold in (0.5, 1.0, 2.0, 3.0, 4.0)]
  kept = [set(of.items) for of in found]
  assert all(later < earlier for earlier, later in itertools.pairwise(kept))


def test_terms_too_weak_for_the_threshold_are_not_walked_through():
  # A common term of weight 1 cannot reach the threshold 2; the rare one of weight 2 can.
  items = np.zeros((1000, 2))
  items[:, 0], items[:10, 1] = 1, 1
  found = InvertedIndex(items).search(np.array([1.0, 2.0]), 2.0)
  np.testing.assert_array_equal(found.items, np.arange(10))
  np.testing.assert_array_equal(found.scores, 3.0)
  assert found.touched == 10 + 10  # the rare list, and the common term of its items


@pytest.mark.parametrize("query", [np.zeros(2), np.array([1.0, 0.0])])
def test_nothing_reaches_a_threshold_that_is_too_high(query):
  assert not len(InvertedIndex(np.ones((3, 2))).search(query, 5.0).items)
