"""The ranker's logits, loss and prior."""

import numpy as np
import pytest
import tensorflow as tf

from tf_twostage.config import EncoderConfig
from tf_twostage.data.schema import Id, Numeric, Schema
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.ranker import ImitatingRanker, Ranker

NAMES = ("a", "b", "c")
SCHEMA = Schema(user=(Id("user", NAMES),), item=(Id("item", NAMES),), context=(Numeric("time"),))
TABLES = EncodedTables.encode(SCHEMA, {"user": np.array(NAMES)}, {"item": np.array(NAMES)})
BATCH = {
  "user": TABLES.users,
  "context": {"time": np.array([0.0, 1.0, 2.0])},
  "action": np.array([2, 0, 0]),
  "reward": np.array([1.0, 0.0, 1.0], np.float32),
}


def make(prior, reward_scale=1.0):
  tf.keras.utils.set_random_seed(0)
  towers = TwoTower(TABLES, EncoderConfig(id_width=4), l2=0.0, use_context=True)
  return Ranker(towers, TABLES.context_lookup, prior, reward_scale)


def test_the_prior_is_added_to_every_logit():
  plain, shifted = make(0.0), make(-2.0)
  np.testing.assert_allclose(shifted(BATCH), plain(BATCH) - 2.0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", [0.0, -2.0])
def test_the_frozen_ranker_says_the_same(prior):
  ranker = make(prior)
  np.testing.assert_allclose(ranker.frozen()(BATCH), ranker(BATCH), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", [0.0, -2.0])
def test_the_loss_is_the_cross_entropy_of_the_logged_pairs(prior):
  ranker = make(prior)
  probability = tf.sigmoid(ranker(BATCH)).numpy()[np.arange(3), BATCH["action"]]
  expected = -(np.log(probability[0]) + np.log(1 - probability[1]) + np.log(probability[2])) / 3
  np.testing.assert_allclose(ranker.compute_loss(BATCH), expected, rtol=1e-5)


def test_the_loss_reads_rewards_in_seconds_as_labels():
  seconds = {**BATCH, "reward": 40.0 * BATCH["reward"]}
  expected = make(0.0).compute_loss(BATCH)
  np.testing.assert_allclose(make(0.0, reward_scale=40.0).compute_loss(seconds), expected)


def test_an_imitating_ranker_learns_scores_in_their_own_units():
  towers = TwoTower(TABLES, EncoderConfig(id_width=4), l2=0.0, use_context=True, item_bias=True)
  ranker = ImitatingRanker(towers, TABLES.context_lookup, mean=40.0, scale=5.0)
  catalogue = ranker.frozen()(BATCH).numpy()
  np.testing.assert_allclose(catalogue, 40 + 5 * towers(ranker.codes(BATCH)).numpy(), rtol=1e-5)
  np.testing.assert_allclose(catalogue, ranker(BATCH), rtol=1e-5)
  predicted = catalogue[np.arange(3), BATCH["action"]]
  np.testing.assert_allclose(ranker.pair_scores(BATCH), predicted, rtol=1e-5)
  scores = predicted + np.array([5.0, -5.0, 10.0])
  batch = {**BATCH, "context": {**BATCH["context"], ImitatingRanker.SCORE: scores}}
  # In units of the scale: errors of 1, -1 and 2.
  assert float(ranker.compute_loss(batch)) == pytest.approx((1 + 1 + 4) / 3, rel=1e-4)
