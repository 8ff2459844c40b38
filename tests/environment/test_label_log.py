"""A log drawn from complete labels."""

import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array

from tf_twostage.config import Config, EncoderConfig, FitConfig, SimulationConfig
from tf_twostage.data.sets import make_xmc
from tf_twostage.data.sets.xmc import document_tables
from tf_twostage.environment import simulated_log
from tf_twostage.environment.full_labels import log_labels, supervised_pairs
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace

DATA = make_xmc(60, 20, 80, 25, labels_per_document=3, features_per_document=10)
TABLES = EncodedTables.encode(*document_tables(DATA, 12))
CONFIG = Config(
  encoder=EncoderConfig(id_width=4, feature_width=6, embedding_stddev=0.1),
  behavior=FitConfig(epochs=30, batch_size=16),
  simulation=SimulationConfig(supervised_documents=40, items_per_user=3),
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  return Workspace(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def logged_policy(stages):
  return log_labels(CONFIG, DATA, TABLES, stages)


def softmax(logits):
  odds = np.exp(logits - logits.max(axis=1, keepdims=True))
  return odds / odds.sum(axis=1, keepdims=True)


def test_supervised_pairs_are_all_labels_of_some_training_documents():
  pairs = supervised_pairs(DATA, 40, seed=0)
  documents = np.unique(pairs.user_index)
  assert len(documents) == 40
  assert documents.max() < DATA.num_train
  expected = {(d, a) for d in documents for a in DATA.labels[[d]].indices}
  assert set(zip(pairs.user_index, pairs.action, strict=True)) == expected
  assert len(pairs) == len(expected)
  assert pairs.reward.min() == 1


def test_every_training_document_is_logged_and_no_other(logged_policy):
  shown = np.bincount(logged_policy.log.user_index, minlength=DATA.num_documents)
  np.testing.assert_array_equal(shown, [3] * 60 + [0] * 20)


def test_rewards_are_the_labels(logged_policy):
  log = logged_policy.log
  np.testing.assert_array_equal(log.reward, DATA.relevance()[log.user_index, log.action])
  assert 0 < log.reward.mean() < 1


def test_propensities_are_the_policys_probabilities(logged_policy):
  users, items = logged_policy.vectors
  assert users.shape == (80, 4)  # test documents, too: the policy is a baseline
  probabilities = softmax(users @ items.T)
  log = logged_policy.log
  np.testing.assert_allclose(log.propensity, probabilities[log.user_index, log.action], rtol=1e-4)


def test_the_policy_has_learnt_from_its_documents(logged_policy):
  random = DATA.train.relevance().mean()
  assert logged_policy.log.reward.mean() > 1.5 * random


def test_stages_are_reused(logged_policy, stages):
  again = log_labels(CONFIG, DATA, TABLES, stages)
  assert stages.timings["behavior_policy"]["reused"]
  assert stages.timings["log"]["reused"]
  assert again.stage == logged_policy.stage
  np.testing.assert_array_equal(again.log.action, logged_policy.log.action)


@pytest.mark.parametrize("replacement", [True, False])
def test_chunks_of_users_draw_from_the_policy(monkeypatch, replacement):
  users, items = 2000, 5
  monkeypatch.setattr(simulated_log, "_PAIRS_PER_CHUNK", 7 * items + 3)  # seven users at a time
  rng = np.random.default_rng(0)
  item_vectors = rng.normal(size=(items, 2)).astype(np.float32)
  user_vectors = np.tile(np.float32([[1.0, -0.5]]), (users, 1))
  log = simulated_log.simulate_log(
    (user_vectors, item_vectors),
    feedback=lambda u, a: ((u % 2 == a % 2).astype(np.float32), {}),
    items_per_user=1,
    replacement=replacement,
    seed=0,
  )
  np.testing.assert_array_equal(log.user_index, np.arange(users))
  np.testing.assert_array_equal(log.reward, log.user_index % 2 == log.action % 2)
  probabilities = softmax(user_vectors[:1] @ item_vectors.T)[0]
  np.testing.assert_allclose(log.propensity, probabilities[log.action], rtol=1e-5)
  expected = users * probabilities
  counts = np.bincount(log.action, minlength=items)
  chi_square = np.sum((counts - expected) ** 2 / expected)
  assert chi_square < items + 5 * np.sqrt(2 * items)


def test_more_supervised_documents_than_there_are_is_refused(stages):
  settings = dataclasses.replace(CONFIG.simulation, supervised_documents=61)
  config = dataclasses.replace(CONFIG, simulation=settings)
  with pytest.raises(InputError, match=r"supervised_documents is 61, but .* 60 training documents"):
    log_labels(config, DATA, TABLES, stages)


def test_documents_without_labels_cannot_fit_a_policy():
  bare = dataclasses.replace(DATA, labels=csr_array(DATA.labels.shape, dtype=bool))
  with pytest.raises(InputError, match="40 supervised documents have no labels"):
    supervised_pairs(bare, 40, seed=0)
