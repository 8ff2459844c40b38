"""Labels of all pairs, and the contexts they are given in."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tf_twostage import RatingsData, environment
from tf_twostage.config import Config, DataConfig, EncoderConfig, FitConfig, SimulationConfig
from tf_twostage.data.sets import make_synthetic
from tf_twostage.environment.full_information import FullInformation, PairContexts, label_all_pairs
from tf_twostage.environment.simulated import random_pairs
from tf_twostage.environment.simulated_log import simulate_log
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.models.simulator import Simulator, fit_simulator
from tf_twostage.workspace import Workspace


@pytest.fixture(scope="module")
def data():
  return make_synthetic(num_users=40, num_items=30, num_ratings=600, seed=1)


@pytest.fixture(scope="module")
def tables(data):
  return EncodedTables.encode(data.schema, data.users, data.items)


@pytest.fixture(scope="module")
def simulator(tables):
  tf.keras.utils.set_random_seed(0)
  return Simulator(tables.schema, EncoderConfig(), l2=0.0)


@pytest.fixture(scope="module")
def information(simulator, data, tables):
  return label_all_pairs(simulator, PairContexts(data, seed=3), tables, 0.2)


def test_contexts_come_from_the_users_own_ratings(data):
  contexts = PairContexts(data, seed=0)
  users = np.repeat(np.arange(data.num_users), data.num_items)
  items = np.tile(np.arange(data.num_items), data.num_users)
  np.testing.assert_array_equal(data.user_index[contexts.rows(users, items)], users)


def test_contexts_use_all_of_a_users_ratings_evenly(data):
  contexts = PairContexts(data, seed=0)
  user = np.bincount(data.user_index).argmax()
  own = np.flatnonzero(data.user_index == user)
  draws = 2000
  items = np.arange(draws)  # beyond the catalogue: only the hash matters here
  counts = np.bincount(contexts.rows(np.full(draws, user), items), minlength=len(data.rating))
  expected = draws / len(own)
  chi_square = np.sum((counts[own] - expected) ** 2 / expected)
  assert chi_square < len(own) + 5 * np.sqrt(2 * len(own))


def test_the_context_of_a_pair_does_not_depend_on_others(data):
  contexts = PairContexts(data, seed=0)
  together = contexts.rows(np.arange(5)[:, None], np.arange(30))
  assert contexts.rows(np.array([3]), np.array([17]))[0] == together[3, 17]


def test_mean_context_is_the_mean_of_each_user(data):
  means = PairContexts(data, seed=0).mean()["timestamp"]
  for user in (0, 7, 39):
    np.testing.assert_allclose(
      means[user], data.context["timestamp"][data.user_index == user].mean()
    )


def test_labels_equal_scoring_pair_by_pair(simulator, data, tables, information):
  contexts = PairContexts(data, seed=3)
  users, items = np.divmod(np.arange(data.num_users * data.num_items), data.num_items)

  def probabilities(context):
    logits = simulator(
      {
        "user": {k: tf.gather(v, users) for k, v in tables.users.items()},
        "item": {k: tf.gather(v, items) for k, v in tables.items.items()},
        "context": tables.context_lookup(context),
      }
    )
    return tf.sigmoid(logits).numpy().reshape(data.num_users, data.num_items)

  drawn = probabilities(contexts(users, items))
  sure = np.abs(drawn - information.threshold) > 1e-5
  np.testing.assert_array_equal(information.labels[sure], (drawn >= information.threshold)[sure])
  mean = probabilities({k: v[users] for k, v in contexts.mean().items()})
  sure = np.abs(mean - information.threshold) > 1e-5
  np.testing.assert_array_equal(information.relevance[sure], (mean >= information.threshold)[sure])


def test_the_positive_rate_fixes_the_threshold(information):
  assert abs(information.labels.mean() - 0.2) < 1 / information.labels.size + 1e-9


def test_full_information_survives_saving(information, tmp_path):
  information.save(tmp_path / "labels.npz")
  loaded = FullInformation.load(tmp_path / "labels.npz")
  np.testing.assert_array_equal(loaded.labels, information.labels)
  np.testing.assert_array_equal(loaded.relevance, information.relevance)
  assert loaded.threshold == information.threshold


def test_simulator_learns_held_out_preferences(tables, data):
  _, auc = fit_simulator(
    data,
    tables,
    EncoderConfig(),
    FitConfig(epochs=20, batch_size=64),
    positive_above=3,
    holdout=0.2,
    seed=0,
  )
  assert auc > 0.6


def logged(information, data, replacement, items_per_user=6, seed=0):
  logits = tf.random.stateless_normal([data.num_users, data.num_items], seed=[5, 5])
  contexts = PairContexts(data, seed=3)
  log = simulate_log(
    (logits, tf.eye(data.num_items)),
    lambda users, items: (information.rewards(users, items), contexts(users, items)),
    items_per_user=items_per_user,
    replacement=replacement,
    seed=seed,
  )
  return log, tf.nn.softmax(logits).numpy()


@pytest.mark.parametrize("replacement", [True, False])
def test_log_records_softmax_propensities_and_labels(information, data, replacement):
  log, probabilities = logged(information, data, replacement)
  np.testing.assert_allclose(log.propensity, probabilities[log.user_index, log.action], rtol=1e-5)
  np.testing.assert_array_equal(log.reward, information.labels[log.user_index, log.action])
  np.testing.assert_array_equal(np.bincount(log.user_index), np.full(data.num_users, 6))


def test_log_with_replacement_follows_the_policy(information, data):
  draws = 4000
  log, probabilities = logged(information, data, True, items_per_user=draws)
  for user in (0, 20):
    counts = np.bincount(log.action[log.user_index == user], minlength=data.num_items)
    expected = draws * probabilities[user]
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert chi_square < data.num_items + 5 * np.sqrt(2 * data.num_items)


def test_log_without_replacement_shows_different_items(information, data):
  log, _ = logged(information, data, False)
  pairs = np.stack([log.user_index, log.action])
  assert np.unique(pairs, axis=1).shape == pairs.shape


def test_log_without_replacement_draws_first_by_the_policy(information, data):
  repeats = 3000
  first = np.zeros(data.num_items)
  for seed in range(repeats // data.num_users):
    log, probabilities = logged(information, data, False, items_per_user=1, seed=seed)
    first += np.bincount(log.action, minlength=data.num_items)
  expected = probabilities.sum(axis=0) * (repeats // data.num_users)
  chi_square = np.sum((first - expected) ** 2 / expected)
  assert chi_square < data.num_items + 5 * np.sqrt(2 * data.num_items)


def test_random_pairs_have_uniform_propensity(information, data):
  pairs = random_pairs(information, PairContexts(data, seed=3), 500, seed=0)
  np.testing.assert_allclose(pairs.propensity, 1 / data.num_items)
  np.testing.assert_array_equal(pairs.reward, information.labels[pairs.user_index, pairs.action])


def test_data_without_context_are_labelled_once_for_both(data):
  schema = dataclasses.replace(data.schema, context=())
  bare = dataclasses.replace(data, schema=schema, context={})
  tables = EncodedTables.encode(schema, bare.users, bare.items)
  simulator = Simulator(schema, EncoderConfig(), l2=0.0)
  contexts = PairContexts(bare, seed=3)
  information = label_all_pairs(simulator, contexts, tables, 0.2)
  np.testing.assert_array_equal(information.labels, information.relevance)
  assert contexts.mean() == {}


def test_ratings_in_a_dataframe_become_an_environment(tmp_path):
  rng = np.random.default_rng(0)
  ratings = pd.DataFrame({"who": np.repeat(np.arange(30), 20), "stars": rng.uniform(-1, 1, 600)})
  ratings["what"] = np.concatenate([rng.permutation(40)[:20] for _ in range(30)])
  data = RatingsData.from_pandas(ratings, user="who", item="what", rating="stars", name="mine")
  once = FitConfig(epochs=1, batch_size=64)
  config = Config(
    slate_size=12,
    data=DataConfig(validation_users=10, positive_above=0.0),
    simulation=SimulationConfig(behavior_pairs=200),
    simulator=once,
    behavior=once,
    ranker=once,
  )
  workspace = Workspace(tmp_path)
  world = environment.make(config, workspace, data)
  assert len(world.log) == 30 * config.simulation.items_per_user
  again = environment.make(config, workspace, data)
  assert all(timing["reused"] for name, timing in workspace.timings.items() if name != "data")
  for name, values in world.log.columns().items():
    np.testing.assert_array_equal(getattr(again.log, name), values)
  drawn = world.evaluation_log(workspace)
  np.testing.assert_array_equal(
    drawn.expected_rewards(np.arange(len(drawn)))[np.arange(len(drawn)), drawn.rows.action],
    drawn.rows.reward,
  )
  assert not np.array_equal(drawn.rows.action, world.log.action)
