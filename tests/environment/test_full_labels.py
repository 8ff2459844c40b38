"""Documents with complete labels as an environment, and a recommender of it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from launch import train
from tests.serving import small
from tf_twostage import environment, serving
from tf_twostage.config import (
  Config,
  DataConfig,
  EncoderConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
)
from tf_twostage.data import sets
from tf_twostage.data.sets import make_xmc
from tf_twostage.errors import InputError
from tf_twostage.models.encoders import TwoTower
from tf_twostage.models.slate_ranker import TowerRanker
from tf_twostage.workspace import Workspace

DATA = make_xmc(80, 40, 90, 30, labels_per_document=4, features_per_document=15)
SLATE = 12
CONFIG = Config(
  slate_size=SLATE,
  data=DataConfig(dataset="tiny", validation_users=15, max_features=10),
  encoder=EncoderConfig(id_width=6, feature_width=8, embedding_stddev=0.1),
  simulation=SimulationConfig(supervised_documents=30),
  behavior=FitConfig(epochs=10, batch_size=16),
  ranker=FitConfig(epochs=3, batch_size=32),
  generator=GeneratorConfig(epochs=2, batch_size=16, item_bias=False),
  loss="two_stage_ips:num_slates=3",
)


@pytest.fixture(scope="module", autouse=True)
def tiny_data():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sets.DATASETS, "tiny", lambda data_dir: DATA)
    yield


@pytest.fixture(scope="module")
def world(tiny_data, tmp_path_factory):
  return environment.make(CONFIG, Workspace(tmp_path_factory.mktemp("stages")))


def with_data(**changes):
  return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


def test_test_documents_are_evaluated_on_their_labels(world):
  users = world.evaluator
  np.testing.assert_array_equal(users.relevance, DATA.test.relevance())
  np.testing.assert_array_equal(users.inputs["user_index"], np.arange(80, 120))
  assert users.excluded is None
  assert users.num_validation == 15
  np.testing.assert_array_equal(
    users.inputs["user"]["words_ids"], world.tables.users["words_ids"][80:]
  )


def test_only_training_documents_are_logged(world):
  assert set(world.log.user_index) == set(range(80))
  assert world.facts == {"logged_reward": pytest.approx(world.log.reward.mean())}


def test_documents_are_cut_to_the_largest_weights(world):
  words = world.tables.users["words_weights"]
  assert words.shape == (120, 10)
  np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, rtol=1e-5)


def test_popularity_is_the_total_reward_of_a_label(world):
  total = np.zeros(30)
  np.add.at(total, world.log.action, world.log.reward)
  logits = world.policies["popularity"]({"user_index": np.arange(2)})
  np.testing.assert_allclose(logits, [total, total])


def test_baselines_score_both_stages(world, tmp_path):
  baselines = world.baselines(Workspace(tmp_path), SLATE)
  assert set(baselines) == {"logging policy", "popularity", "ranker, all items", "random"}
  # A precision by hand: the policy's best label of each test document.
  policy = world.policies["logging policy"]({"user_index": np.arange(80, 120)}).numpy()
  labelled = DATA.test.relevance()[15:]
  hits = labelled[np.arange(25), policy[15:].argmax(axis=1)]
  assert baselines["logging policy"]["test"]["one_stage"]["precision@1"] == pytest.approx(
    hits[labelled.any(axis=1)].mean()
  )


def test_another_workspace_gives_the_same_environment(world, tmp_path):
  again = environment.make(CONFIG, Workspace(tmp_path))
  assert again.name == world.name
  np.testing.assert_array_equal(again.log.action, world.log.action)


@pytest.mark.parametrize("setting", [{"max_features": 9}, {"data_dir": "elsewhere"}])
def test_the_name_follows_the_data_alone(world, tmp_path, setting):
  other = environment.make(with_data(**setting), Workspace(tmp_path))
  assert (other.name == world.name) == ("data_dir" in setting)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"environment": "ready"}, "environment=ready: .* leave it out, the labels of tiny are"),
    ({"validation_users": 40}, "validation_users is 40, but xmc_synthetic has 40 test documents"),
  ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    environment.make(with_data(**changes), Workspace(tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_slate_larger_than_the_labels_is_refused(tmp_path):
  with pytest.raises(InputError, match="not exceed the 30 labels"):
    environment.make(dataclasses.replace(CONFIG, slate_size=31), Workspace(tmp_path))


def test_a_run_exports_a_model_of_documents(tiny_data, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)  # see below
  metrics, _ = train.run(CONFIG, tmp_path / "run", tmp_path / "export")
  assert 0 <= metrics["test"]["two_stage"]["precision@1"] <= 1
  assert "logged_reward" in metrics
  signature = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["recommend"]
  assert set(signature.structured_input_signature[1]) == {
    "words_ids",
    "words_weights",
    "exclude",
    "k",
  }
  answer = signature(
    words_ids=tf.constant([[3, 5, -1], [10_000, -1, -1]], tf.int64),  # the second knows no word
    words_weights=tf.constant([[0.2, 7.0, 0.0], [1.0, 0.0, 0.0]]),
    exclude=tf.constant([["3", "4"], ["", ""]]),
    k=tf.constant(SLATE),
  )
  assert answer["item_id"].shape == (2, SLATE)
  assert not {b"3", b"4", b""} & set(answer["item_id"][0].numpy())
  np.testing.assert_array_equal(answer["title"], answer["item_id"])


def test_an_export_repeats_a_recommender_of_sparse_vectors(world, tmp_path):
  towers = TwoTower(world.tables, CONFIG.encoder, l2=0.0)
  recommender = serving.ServableRecommender(
    world.tables.schema, towers, TowerRanker(towers), world.titles, SLATE
  )
  serving.export(recommender, tmp_path, world.requests)  # which checks the answers
  requests = {name: tf.constant(value) for name, value in world.requests.items()}
  best = recommender.recommend(**requests, k=tf.constant(SLATE))
  asked = slice(80, 80 + len(world.requests["exclude"]))  # the first test documents
  codes = {name: values[asked] for name, values in world.tables.users.items()}
  logits = towers(codes).numpy()
  expected = np.argsort(-logits, axis=1)[:, :SLATE]
  np.testing.assert_array_equal(best["item_id"].numpy().astype(int), expected)
