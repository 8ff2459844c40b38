"""retrieve and rerank."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.models.two_stage import PADDING, products, rerank, retrieve

NONE = np.zeros((1, 4), bool)


@pytest.mark.parametrize(
  "items", [None, [4, 0], [[1, 1], [2, 0], [3, 4]]], ids=["all", "the same", "each user's own"]
)
def test_products_score_all_items_or_some(items):
  rng = np.random.default_rng(0)
  users, vectors = rng.normal(size=(3, 2)), rng.normal(size=(5, 2))
  wanted = users @ vectors.T
  if items is not None:
    wanted = np.take_along_axis(wanted, np.broadcast_to(items, (3, 2)), axis=1)
    items = tf.constant(items)
  np.testing.assert_allclose(products(tf.constant(users), tf.constant(vectors), items), wanted)


def test_retrieve_orders_by_score():
  ids, scores = retrieve(tf.constant([[1.0, 3.0, 2.0, 0.0]]), NONE, 3)
  np.testing.assert_array_equal(ids, [[1, 2, 0]])
  np.testing.assert_array_equal(scores, [[3.0, 2.0, 1.0]])


def test_retrieve_never_returns_excluded_items():
  excluded = np.array([[False, True, False, False]])
  ids, _ = retrieve(tf.constant([[1.0, 3.0, 2.0, 0.0]]), excluded, 3)
  np.testing.assert_array_equal(ids, [[2, 0, 3]])


def test_retrieve_may_have_nothing_to_exclude():
  logits = tf.constant([[1.0, 3.0, 2.0, 0.0]])
  for with_mask, without in zip(retrieve(logits, NONE, 3), retrieve(logits, None, 3), strict=True):
    np.testing.assert_array_equal(with_mask, without)


def test_retrieve_pads_when_the_catalogue_runs_out():
  excluded = np.array([[True, True, False, True]])
  ids, scores = retrieve(tf.constant([[1.0, 3.0, 2.0, 0.0]]), excluded, 3)
  np.testing.assert_array_equal(ids, [[2, PADDING, PADDING]])
  np.testing.assert_array_equal(scores, [[2.0, -np.inf, -np.inf]])


def test_retrieve_keeps_items_of_huge_scores():
  ids, _ = retrieve(tf.constant([[-1e38, 1e38]]), np.zeros((1, 2), bool), 2)
  np.testing.assert_array_equal(ids, [[1, 0]])


def test_rerank_moves_ids_with_their_scores():
  ids, scores = rerank(tf.constant([[7, 5, 9]]), tf.constant([[0.1, 0.3, 0.2]]), 2)
  np.testing.assert_array_equal(ids, [[5, 9]])
  np.testing.assert_allclose(scores, [[0.3, 0.2]])


def test_rerank_keeps_padding_last_whatever_its_score():
  ids, scores = rerank(tf.constant([[7, PADDING]]), tf.constant([[-5.0, 100.0]]), 2)
  np.testing.assert_array_equal(ids, [[7, PADDING]])
  np.testing.assert_array_equal(scores, [[-5.0, -np.inf]])


@pytest.mark.parametrize("seed", range(3))
def test_two_stages_equal_sorting_row_by_row(seed):
  rng = np.random.default_rng(seed)
  logits, ranker = rng.normal(size=(2, 6, 20)).astype(np.float32)
  excluded = rng.random((6, 20)) < 0.3
  slate, _ = retrieve(tf.constant(logits), excluded, 8)
  ids, _ = rerank(slate, tf.gather(tf.constant(ranker), tf.maximum(slate, 0), batch_dims=1), 5)
  for row in range(6):
    allowed = [i for i in range(20) if not excluded[row, i]]
    candidates = sorted(allowed, key=lambda i: -logits[row, i])[:8]
    expected = sorted(candidates, key=lambda i: -ranker[row, i])[:5]
    np.testing.assert_array_equal(ids[row], expected)
