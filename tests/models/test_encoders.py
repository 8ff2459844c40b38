"""Lookup, embedding, towers."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.config import EncoderConfig
from tf_twostage.data.schema import Bag, Categorical, Embedding, Id, Numeric, Schema, embedding
from tf_twostage.models.encoders import EncodedTables, FeatureEncoder, FeatureLookup, TwoTower

SCHEMA = Schema(
  user=(Id("user", ("u0", "u1", "u2")), Categorical("sex", ("F", "M"))),
  item=(Id("item", ("i0", "i1", "i2", "i3")), Bag("tags", ("a", "b", "c"), max_length=2)),
  context=(Numeric("time", offset=100.0, scale=50.0),),
)
USERS = {"user": np.array(["u0", "u1", "u2"]), "sex": np.array(["M", "F", "M"])}
ITEMS = {
  "item": np.array(["i0", "i1", "i2", "i3"]),
  "tags": np.array([["a", "b"], ["c", ""], ["", ""], ["a", "a"]]),
}
WIDTHS = EncoderConfig(id_width=4, feature_width=3)


@pytest.fixture(autouse=True)
def seeded():
  tf.keras.utils.set_random_seed(0)


@pytest.fixture
def tables():
  return EncodedTables.encode(SCHEMA, USERS, ITEMS)


def test_ids_are_looked_up_in_catalogue_order(tables):
  np.testing.assert_array_equal(tables.items["item"], [1, 2, 3, 4])  # 0 is out of vocabulary


def test_unknown_values_share_code_zero():
  codes = FeatureLookup(SCHEMA.user)({"user": ["nobody"], "sex": ["?"]})
  assert int(codes["user"][0]) == int(codes["sex"][0]) == 0


def test_numbers_are_scaled_in_double_precision():
  lookup = FeatureLookup((Numeric("time", offset=978_300_000.0, scale=100.0),))
  codes = lookup({"time": np.array([978_300_001.0])})
  np.testing.assert_allclose(codes["time"], [1 / 100.0], rtol=1e-6)


@pytest.mark.parametrize("time", [1e47, 1e308, -1e308])
def test_scores_of_any_finite_number_are_finite(tables, time):
  towers = TwoTower(tables, WIDTHS, l2=0.0, use_context=True)
  context = tables.context_lookup({"time": np.full(3, time)})
  np.testing.assert_array_equal(context["time"], np.full(3, np.sign(time) * 1e12, np.float32))
  assert np.isfinite(towers({**tables.users, **context})).all()


def test_a_vector_is_scaled_and_multiplied_by_a_matrix():
  feature = Embedding("text", 3, scale=2.0)
  vectors = np.array([[2.0, 0.0, -4.0], [0.0, 0.0, 0.0]])
  encoder = FeatureEncoder([feature], WIDTHS, l2=0.0)
  (matrix,) = (weights.numpy() for weights in encoder.trainable_variables)
  assert matrix.shape == (3, WIDTHS.id_width) == (3, encoder.width)
  encoded = encoder(FeatureLookup([feature])({"text": vectors}))
  np.testing.assert_allclose(encoded, [matrix[0] - 2 * matrix[2], np.zeros(4)], rtol=1e-6)


def test_products_of_vectors_start_from_the_distribution_of_embeddings():
  vectors = 7 * np.random.default_rng(0).normal(size=(400, 50))
  feature = embedding("text", vectors)
  config = EncoderConfig(id_width=400, embedding_stddev=0.3)
  encoded = FeatureEncoder([feature], config, l2=0.0)(FeatureLookup([feature])({"text": vectors}))
  assert np.std(encoded) == pytest.approx(0.3, rel=0.02)


def test_bag_is_the_mean_of_its_embeddings(tables):
  encoder = FeatureEncoder(SCHEMA.item[1:], WIDTHS, l2=0.0)
  table = encoder.trainable_variables[0].numpy()  # rows: padding, unknown, a, b, c
  expected = [(table[2] + table[3]) / 2, table[4], np.zeros(3), table[2]]
  np.testing.assert_allclose(encoder(tables.items), expected, rtol=1e-6)


def test_unknown_values_start_at_zero():
  encoder = FeatureEncoder(SCHEMA.user, WIDTHS, l2=0.0)
  unknown = FeatureLookup(SCHEMA.user)({"user": ["nobody"], "sex": ["?"]})
  np.testing.assert_array_equal(encoder(unknown), np.zeros((1, 4 + 3)))


def test_embeddings_start_with_the_configured_spread():
  vocabulary = tuple(map(str, range(5000)))
  encoder = FeatureEncoder((Id("id", vocabulary),), EncoderConfig(embedding_stddev=0.5), l2=0.0)
  known = encoder.trainable_variables[0].numpy()[1:]
  standard_error = 0.5 / np.sqrt(2 * known.size)
  assert abs(known.std() - 0.5) < 5 * standard_error


def test_towers_score_every_pair_alike(tables):
  towers = TwoTower(tables, WIDTHS, l2=0.0)
  logits = towers(tables.users)
  assert logits.shape == (3, 4)
  for action in range(4):
    pairs = towers.pair_logits(tables.users, tf.fill([3], action))
    np.testing.assert_allclose(pairs, logits[:, action], rtol=1e-5, atol=1e-6)


def test_user_side_is_linear_after_relu(tables):
  towers = TwoTower(tables, WIDTHS, l2=0.0)
  kernel, bias = towers._projection.get_weights()
  expected = np.maximum(towers._users(tables.users), 0) @ kernel + bias
  np.testing.assert_allclose(towers.query(tables.users), expected, rtol=1e-5, atol=1e-6)


def test_context_moves_the_query_only_where_used(tables):
  early, late = (tables.context_lookup({"time": np.full(3, t)}) for t in (100.0, 150.0))
  with_context = TwoTower(tables, WIDTHS, l2=0.0, use_context=True)
  without = TwoTower(tables, WIDTHS, l2=0.0)
  assert not np.allclose(
    with_context.query({**tables.users, **early}), with_context.query({**tables.users, **late})
  )
  np.testing.assert_array_equal(
    without.query({**tables.users, **early}), without.query({**tables.users, **late})
  )


def test_l2_is_half_the_squared_norm_of_all_weights(tables):
  l2 = 0.3
  towers = TwoTower(tables, WIDTHS, l2=l2)
  expected = sum(l2 / 2 * np.sum(np.square(w)) for w in towers.get_weights())
  np.testing.assert_allclose(tf.add_n(towers.losses), expected, rtol=1e-5)


def test_variables_exist_before_the_first_call(tables):
  before = len(TwoTower(tables, WIDTHS, l2=0.0).trainable_variables)
  towers = TwoTower(tables, WIDTHS, l2=0.0)
  towers(tables.users)
  assert before == len(towers.trainable_variables) == 6  # 2 + 2 embeddings, kernel, bias


# Item bias


def with_bias(tables, **options):
  """Towers whose items have biases 0, 1, 2, 3, and the same towers without."""
  towers, without = (
    TwoTower(tables, WIDTHS, l2=0.0, item_bias=bias, **options) for bias in (True, False)
  )
  (bias,) = [v for v in towers.trainable_variables if "item_bias" in v.name]
  rest = [v for v in towers.trainable_variables if v is not bias]
  for mine, theirs in zip(rest, without.trainable_variables, strict=True):
    theirs.assign(mine)
  bias.assign(tf.range(4.0))
  return towers, without


def test_biases_start_at_zero(tables):
  towers = TwoTower(tables, WIDTHS, l2=0.0, item_bias=True)
  (bias,) = [v for v in towers.trainable_variables if "item_bias" in v.name]
  np.testing.assert_array_equal(bias, np.zeros(4))


def test_biases_start_where_they_are_told_and_l2_draws_them_there(tables):
  start = np.array([0.0, 1.0, -2.0, 0.5])
  towers = TwoTower(tables, WIDTHS, l2=0.3, item_bias=start)
  for actions in (None, tf.constant([2, 1])):
    own = towers.candidates(actions)[:, -1]
    np.testing.assert_array_equal(own, start if actions is None else start[[2, 1]])
  new = towers.new_candidates({name: codes[:2] for name, codes in tables.items.items()})
  np.testing.assert_array_equal(new[:, -1], np.zeros(2))
  before = float(tf.add_n(towers.losses))
  (bias,) = [v for v in towers.trainable_variables if "item_bias" in v.name]
  bias.assign([0.0, 1.0, 2.0, 2.0])
  np.testing.assert_allclose(towers.candidates()[:, -1], start + np.array([0.0, 1.0, 2.0, 2.0]))
  np.testing.assert_allclose(tf.add_n(towers.losses) - before, 0.3 / 2 * 9, rtol=1e-4)


def test_a_bias_is_added_to_the_logits_of_every_user(tables):
  towers, without = with_bias(tables)
  np.testing.assert_allclose(
    towers(tables.users), without(tables.users) + np.arange(4.0), rtol=1e-5, atol=1e-6
  )


def test_pairs_and_vectors_carry_the_bias(tables):
  towers, _ = with_bias(tables)
  logits = towers(tables.users)
  products = tf.matmul(towers.query(tables.users), towers.candidates(), transpose_b=True)
  np.testing.assert_allclose(products, logits, rtol=1e-5, atol=1e-6)
  for action in range(4):
    pairs = towers.pair_logits(tables.users, tf.fill([3], action))
    np.testing.assert_allclose(pairs, logits[:, action], rtol=1e-5, atol=1e-6)


def test_a_bias_works_beside_the_context(tables):
  towers, without = with_bias(tables, use_context=True)
  codes = {**tables.users, **tables.context_lookup({"time": np.full(3, 150.0)})}
  np.testing.assert_allclose(towers(codes), without(codes) + np.arange(4.0), rtol=1e-5, atol=1e-6)


def test_a_bias_learns_the_share_of_its_item(tables):
  # The gradient of the mean log-likelihood is the log's share of the item minus the policy's.
  towers, _ = with_bias(tables)
  (bias,) = [v for v in towers.trainable_variables if "item_bias" in v.name]
  actions = np.array([0, 3, 3])
  with tf.GradientTape() as tape:
    logits = towers(tables.users)
    log_p = tf.gather(tf.nn.log_softmax(logits), actions, batch_dims=1)
    mean = tf.reduce_mean(log_p)
  expected = np.bincount(actions, minlength=4) / 3 - tf.reduce_mean(tf.nn.softmax(logits), axis=0)
  np.testing.assert_allclose(tape.gradient(mean, bias), expected, rtol=1e-4, atol=1e-6)


def test_l2_counts_the_bias(tables):
  towers = TwoTower(tables, WIDTHS, l2=0.3, item_bias=True)
  before = float(tf.add_n(towers.losses))
  (bias,) = [v for v in towers.trainable_variables if "item_bias" in v.name]
  bias.assign([0.0, 1.0, 2.0, 2.0])
  np.testing.assert_allclose(tf.add_n(towers.losses) - before, 0.3 / 2 * 9, rtol=1e-4)


class TestIdBuckets:
  CONFIG = EncoderConfig(id_width=4, feature_width=3, id_buckets=3)

  def test_ids_that_are_as_far_apart_share_a_row(self, tables):
    items = FeatureEncoder(SCHEMA.item[:1], self.CONFIG, l2=0.0)(tables.items).numpy()
    np.testing.assert_array_equal(items[0], items[3])
    assert len(np.unique(items, axis=0)) == 3

  def test_bound_the_tables_of_ids_alone(self):
    encoder = FeatureEncoder(SCHEMA.item, self.CONFIG, l2=0.0)
    assert [v.shape.as_list() for v in encoder.trainable_variables] == [[1 + 3, 4], [2 + 3, 3]]

  def test_leave_a_small_vocabulary_and_unknown_ids_alone(self, tables):
    users = FeatureEncoder(SCHEMA.user, self.CONFIG, l2=0.0)
    assert len(np.unique(users(tables.users).numpy()[:, :4], axis=0)) == 3
    unknown = FeatureLookup(SCHEMA.item)({"item": ["?"], "tags": [["", ""]]})
    items = FeatureEncoder(SCHEMA.item, self.CONFIG, l2=0.0)
    np.testing.assert_array_equal(items(unknown), np.zeros((1, 7)))

  def test_the_penalty_is_of_shared_rows_once(self, tables):
    encoder = FeatureEncoder(SCHEMA.item[:1], self.CONFIG, l2=2.0, sparse_l2=True)
    row = encoder.trainable_variables[0].numpy()[1]
    ends = {"item": tf.gather(tables.items["item"], [0, 3])}
    np.testing.assert_allclose(encoder.touched_penalty(ends), np.sum(row**2), rtol=1e-6)
