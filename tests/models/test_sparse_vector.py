"""Sparse weighted vectors from raw arrays to a tower's query."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.config import EncoderConfig
from tf_twostage.data.schema import Id, Schema, SparseVector
from tf_twostage.models import encoders
from tf_twostage.models.encoders import EncodedTables, FeatureEncoder, FeatureLookup, TwoTower

SIZE, WIDTH = 6, 3
WORDS = SparseVector("words", SIZE, max_length=4)
CONFIG = EncoderConfig(id_width=4, feature_width=WIDTH)
# A plain row; padding in between; an unknown word; a word that stands twice; nothing.
IDS = np.array([[0, 5, 2, 1], [3, -1, 4, -1], [1, 6, -7, -1], [2, 2, -1, -1], [-1, -1, -1, -1]])
WEIGHTS = np.array(
  [
    [1.0, -2.0, 2.0, 4.0],
    [0.3, 9.0, 0.4, 9.0],
    [5.0, 7.0, 7.0, 7.0],
    [3.0, 1.0, 0.0, 0.0],
    [1] * 4,
  ],
  np.float32,
)
RAW = {"words_ids": IDS, "words_weights": WEIGHTS}


def dense(ids, weights):
  """[rows, SIZE], by a loop."""
  rows = np.zeros((len(ids), SIZE))
  for row, *entries in zip(rows, ids, weights, strict=True):
    known = [(i, w) for i, w in zip(*entries, strict=True) if 0 <= i < SIZE]
    length = np.sqrt(sum(w**2 for _, w in known))
    for i, w in known:
      row[i] += w / length
  return rows


def encoder(l2=0.0):
  tf.keras.utils.set_random_seed(0)
  return FeatureEncoder((WORDS,), CONFIG, l2)


def test_the_embedding_is_the_weighted_sum():
  layer = encoder()
  expected = dense(IDS, WEIGHTS) @ layer.trainable_variables[0].numpy()
  np.testing.assert_allclose(layer(FeatureLookup((WORDS,))(RAW)), expected, rtol=1e-5, atol=1e-6)


def test_a_plain_row_has_length_one():
  codes = FeatureLookup((WORDS,))(RAW)
  np.testing.assert_allclose(codes["words_weights"][0], np.array([1, -2, 2, 4]) / 5, rtol=1e-6)
  np.testing.assert_array_equal(codes["words_ids"][0], IDS[0])


def test_scale_and_padding_do_not_matter():
  layer, lookup = encoder(), FeatureLookup((WORDS,))
  wider = {
    "words_ids": np.pad(IDS, ((0, 0), (2, 3)), constant_values=-1),
    "words_weights": np.pad(100 * WEIGHTS, ((0, 0), (2, 3)), constant_values=1.0),
  }
  np.testing.assert_allclose(layer(lookup(wider)), layer(lookup(RAW)), rtol=1e-5, atol=1e-6)


def test_a_row_without_known_words_is_zero():
  codes = FeatureLookup((WORDS,))({k: v[4:] for k, v in RAW.items()})
  np.testing.assert_array_equal(encoder()(codes), np.zeros((1, WIDTH)))


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 0), slice(4, 5)])
def test_any_number_of_rows(rows):
  codes = FeatureLookup((WORDS,))({k: v[rows] for k, v in RAW.items()})
  assert encoder()(codes).shape == (len(IDS[rows]), WIDTH)


def test_the_gradient_is_that_of_a_dense_product():
  layer, codes = encoder(), FeatureLookup((WORDS,))(RAW)
  (table,) = layer.trainable_variables
  seen = np.arange(len(IDS) * WIDTH, dtype=np.float32).reshape(len(IDS), WIDTH)
  with tf.GradientTape() as tape:
    value = tf.reduce_sum(layer(codes) * seen)
  gradient = tf.convert_to_tensor(tape.gradient(value, table))
  np.testing.assert_allclose(gradient, dense(IDS, WEIGHTS).T @ seen, rtol=1e-5, atol=1e-5)


def test_a_vector_starts_with_the_spread_of_any_embedding():
  words = SparseVector("words", 2000, max_length=50)
  rng = np.random.default_rng(0)
  raw = {
    "words_ids": rng.permutation(2000).reshape(40, 50),
    "words_weights": rng.gamma(1.0, size=(40, 50)),
  }
  tf.keras.utils.set_random_seed(0)
  layer = FeatureEncoder((words,), EncoderConfig(feature_width=100, embedding_stddev=0.5), l2=0.0)
  vectors = layer(FeatureLookup((words,))(raw)).numpy()
  standard_error = 0.5 / np.sqrt(2 * vectors.size)
  assert abs(vectors.std() - 0.5) < 5 * standard_error


@pytest.fixture
def tables():
  """Documents told by words alone, items by an id and words."""
  names = tuple(f"d{i}" for i in range(len(IDS)))
  schema = Schema(
    user=(Id("document", names, embedded=False), WORDS),
    item=(Id("item", names), SparseVector("title", SIZE, 4)),
  )
  items = {"item": np.array(names), "title_ids": IDS[::-1], "title_weights": WEIGHTS[::-1]}
  return EncodedTables.encode(schema, {"document": np.array(names), **RAW}, items)


def test_documents_of_the_same_words_are_the_same_user(tables):
  towers = TwoTower(tables, CONFIG, l2=0.0)
  assert set(tables.users) == {"words_ids", "words_weights"}
  codes = {name: tf.repeat(values[:1], 2, axis=0) for name, values in tables.users.items()}
  query = towers.query(codes).numpy()
  np.testing.assert_array_equal(query[0], query[1])
  assert len(towers.trainable_variables) == 1 + 2 + 2  # words; item, title; kernel, bias


def test_pairs_are_scored_like_the_catalogue(tables):
  towers = TwoTower(tables, CONFIG, l2=0.0, item_bias=True)
  logits = towers(tables.users)
  for action in range(len(IDS)):
    pairs = towers.pair_logits(tables.users, tf.fill([len(IDS)], action))
    np.testing.assert_allclose(pairs, logits[:, action], rtol=1e-4, atol=1e-5)


def test_unsorted_and_repeated_words_add_up_with_their_gradient():
  ids, weights = (
    tf.constant([[3, 1, 1, 0], [0, 0, 0, 0]]),
    tf.constant([[0.5, 0.25, 1, 0], [0.0] * 4]),
  )
  table = tf.Variable(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
  with tf.GradientTape() as tape:
    found = encoders._weighted_sum(ids, weights, table)
    total = tf.reduce_sum(found * [[1.0, 2.0, 3.0]])
  np.testing.assert_allclose(found, [0.5 * table[3] + 1.25 * table[1], [0.0] * 3], rtol=1e-6)
  shares = np.array([0, 1.25, 0, 0.5, 0])[:, np.newaxis]
  np.testing.assert_allclose(tape.gradient(total, table), shares * [1.0, 2.0, 3.0], rtol=1e-6)
