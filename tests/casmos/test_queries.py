import numpy as np
import pytest
import tensorflow as tf

from tests.casmos import small
from tf_twostage.casmos.clauses import Clause, Query
from tf_twostage.casmos.queries import BELOW, LoggedRows, StructuredQueries
from tf_twostage.policies import SoftmaxPolicy, TwoStagePolicy


@pytest.fixture(scope="module")
def world():
  return small.world()


def made(world, threshold=None, **settings):
  return StructuredQueries(world.tables, Query(small.TRUTH, threshold), **settings)


def by_hand(world):
  """Scores [U, N] from the raw values."""
  total = np.zeros((small.NUM_USERS, small.NUM_ITEMS))
  for clause in small.TRUTH:
    user = np.ones(small.NUM_USERS, bool)
    for name, value in clause.user:
      user &= world.users[name] == value
    ((name, value),) = clause.item
    item = (world.items[name].reshape(small.NUM_ITEMS, -1) == value).any(axis=1)
    total += clause.weight * np.outer(user, item)
  return total


def test_scores_are_sums_of_the_weights_of_matched_clauses(world):
  np.testing.assert_allclose(made(world)(world.tables.users), by_hand(world), atol=1e-6)


def test_contributions_add_up_to_the_score(world):
  model, items = made(world), np.arange(small.NUM_USERS) % small.NUM_ITEMS
  found = model.contributions(world.tables.users, model.candidates(items))
  expected = by_hand(world)[np.arange(small.NUM_USERS), items]
  np.testing.assert_allclose(tf.reduce_sum(found, axis=1), expected, atol=1e-6)


def test_items_below_the_threshold_are_lowered_and_keep_their_order(world):
  scores = by_hand(world)
  expected = np.where(scores < 1.5, scores - BELOW, scores)
  np.testing.assert_allclose(made(world, 1.5)(world.tables.users), expected, atol=1e-5)


@pytest.mark.parametrize("threshold", [1.5, 100.0])
def test_policies_are_distributions_on_what_passes(world, threshold):
  logits = made(world, threshold)(world.tables.users)
  ranker = tf.random.stateless_normal(logits.shape, [0, 1])
  for policy in (SoftmaxPolicy(logits), TwoStagePolicy(logits, ranker, 10)):
    np.testing.assert_allclose(tf.reduce_sum(policy.probabilities(), axis=1), 1, atol=1e-4)
  passed = by_hand(world) >= threshold
  of_passed = (SoftmaxPolicy(logits).probabilities() * passed).numpy().sum(axis=1)
  np.testing.assert_allclose(of_passed[passed.any(axis=1)], 1, atol=1e-6)


def test_the_threshold_is_the_highest_that_the_share_of_the_rows_reaches(world):
  scores = by_hand(world)
  items = np.random.default_rng(0).integers(small.NUM_ITEMS, size=small.NUM_USERS)
  weight = np.random.default_rng(1).random(small.NUM_USERS)
  model = made(world, rows=LoggedRows(world.tables.users, items, weight), recall=0.6)
  model.choose_threshold()
  of_rows, threshold = scores[np.arange(small.NUM_USERS), items], model.current().threshold
  assert weight[of_rows >= threshold].sum() >= 0.6 * weight.sum()
  higher = np.unique(of_rows[of_rows > threshold])[1]
  assert weight[of_rows >= higher].sum() < 0.6 * weight.sum()


def test_the_threshold_of_a_file_stays(world):
  rows = LoggedRows(world.tables.users, np.zeros(small.NUM_USERS, int), np.ones(small.NUM_USERS))
  model = made(world, 1.25, rows=rows)
  model.choose_threshold()
  assert model.current().threshold == 1.25


def test_weights_stay_at_zero_or_above_and_drop_out_at_zero(world):
  model = made(world)
  optimizer = tf.keras.optimizers.SGD(10.0)
  # Raises the scores of the items of one country, at the cost of all others.
  wanted = tf.constant(world.items["country"] == "at", tf.float32)
  with tf.GradientTape() as tape:
    loss = -tf.reduce_mean(tf.nn.log_softmax(model(world.tables.users)) @ wanted[:, tf.newaxis])
  optimizer.apply_gradients(
    zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
  )
  weights = model.trainable_variables[0].numpy()
  assert weights.min() == 0
  left = model.current().clauses
  assert len(left) == (weights > 0).sum()
  assert Clause((), (("country", "at"),), 1.0).item in [c.item for c in left]
