"""The best items of a large catalogue against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.top_k import top_k

ITEMS = 1_003  # not a multiple of the groups' size
KINDS = {
  "distinct": lambda rng: rng.normal(size=(5, ITEMS)),
  "many ties": lambda rng: rng.integers(4, size=(5, ITEMS)),
  "all equal": lambda rng: np.zeros((5, ITEMS)),
  "fewer than k": lambda rng: np.where(rng.random((5, ITEMS)) < 0.002, 1.0, -np.inf),
  "best are last": lambda rng: np.tile(np.arange(ITEMS), (5, 1)),
  "no rows": lambda rng: np.zeros((0, ITEMS)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 200])  # 200 are too many for groups
def test_the_best_items_are_those_of_a_heap(kind, k):
  scores = tf.constant(KINDS[kind](np.random.default_rng(0)).astype(np.float32))
  for found, expected in zip(top_k(scores, k), tf.math.top_k(scores, k), strict=True):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [0, 3, 200])
def test_k_may_be_a_tensor_in_a_graph(k):
  scores = tf.random.stateless_normal([4, ITEMS], (0, 0))
  graph = tf.function(
    top_k, input_signature=[tf.TensorSpec([None, ITEMS]), tf.TensorSpec([], tf.int32)]
  )
  for found, expected in zip(graph(scores, k), tf.math.top_k(scores, k), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_the_number_of_items_may_be_unknown_in_a_graph():
  scores = tf.random.stateless_normal([4, ITEMS], (0, 0))
  graph = tf.function(lambda x: top_k(x, 3), input_signature=[tf.TensorSpec([None, None])])
  np.testing.assert_array_equal(graph(scores)[1], tf.math.top_k(scores, 3).indices)


def test_scores_that_are_not_numbers_give_items_of_the_catalogue():
  scores = np.zeros((2, ITEMS), np.float32)
  scores[0, 5:900] = np.nan
  _, ids = top_k(tf.constant(scores), 3)
  assert ((ids.numpy() >= 0) & (ids.numpy() < ITEMS)).all()
