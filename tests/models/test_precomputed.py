"""Vectors that stand in for fitted towers."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage import serving
from tf_twostage.config import EncoderConfig
from tf_twostage.data.sets import make_synthetic
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.slate_ranker import PrecomputedTowers, TowerRanker

DATA = make_synthetic(num_users=6, num_items=12, num_ratings=40)
TABLES = EncodedTables.encode(DATA.schema, DATA.users, DATA.items)


@pytest.fixture
def vectors():
  rng = np.random.default_rng(0)
  return [rng.normal(size=(rows, 4)).astype(np.float32) for rows in (6, 12)]


def test_users_and_items_have_their_vectors(vectors):
  towers = PrecomputedTowers("user_id", *vectors)
  np.testing.assert_array_equal(towers.query(TABLES.users), vectors[0])
  np.testing.assert_array_equal(towers.candidates(), vectors[1])


def test_users_are_found_by_their_code_not_their_place(vectors):
  towers = PrecomputedTowers("user_id", *vectors)
  codes = {"user_id": tf.gather(TABLES.users["user_id"], [4, 0, 4])}
  np.testing.assert_array_equal(towers.query(codes), vectors[0][[4, 0, 4]])


def test_an_unknown_user_has_no_preference(vectors):
  towers = PrecomputedTowers("user_id", *vectors)
  np.testing.assert_array_equal(towers.query({"user_id": tf.constant([0])}), np.zeros((1, 4)))


def test_nothing_is_left_to_train(vectors):
  towers = PrecomputedTowers("user_id", *vectors)
  assert not towers.trainable_variables
  assert len(towers.variables) == 2  # an export keeps them


def test_an_export_ranks_by_them(vectors):
  generator = TwoTower(TABLES, EncoderConfig(), l2=0.0)
  ranker = TowerRanker(PrecomputedTowers("user_id", *vectors))
  schema = DATA.schema
  recommender = serving.ServableRecommender(schema, generator, ranker, DATA.titles, 12)
  request = {f.name: tf.constant(DATA.users[f.name]) for f in schema.user}
  request |= {f.name: tf.zeros(6, tf.float64) for f in schema.context}
  answer = recommender.recommend(exclude=tf.fill([6, 1], ""), k=tf.constant(12), **request)
  # A slate of the whole catalogue is the ranker's order.
  order = np.argsort(-vectors[0] @ vectors[1].T, axis=1)
  np.testing.assert_array_equal(
    answer["item_id"].numpy().astype(str), np.array(schema.item_id.vocabulary)[order]
  )
