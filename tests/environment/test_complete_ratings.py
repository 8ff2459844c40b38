"""People who rated every item as an environment, and rankers of several strengths."""

import dataclasses

import numpy as np
import pytest

from tests import commands
from tests import prepared_environment as ready
from tests.data.sets import jester_files as files
from tf_twostage import environment
from tf_twostage.config import (
  Config,
  DataConfig,
  EncoderConfig,
  FitConfig,
  SimulationConfig,
)
from tf_twostage.data import sets
from tf_twostage.environment.simulated import by_users
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

ABOVE = 1.0
CONFIG = Config(
  slate_size=12,
  data=DataConfig(dataset="jester", validation_users=10, positive_above=ABOVE),
  encoder=EncoderConfig(id_width=4),
  simulation=SimulationConfig(behavior_pairs=200, items_per_user=4),
  behavior=FitConfig(epochs=2),
  ranker=FitConfig(epochs=20, learning_rate=0.1),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("jester")
  files.write(folder)
  return sets.load("jester", str(folder))


def make(data, folder, **simulation):
  config = dataclasses.replace(
    CONFIG, simulation=dataclasses.replace(CONFIG.simulation, **simulation)
  )
  return environment.make(config, Workspace(folder), data)


@pytest.fixture(scope="module")
def world(data, tmp_path_factory):
  return make(data, tmp_path_factory.mktemp("stages"))


def labels(data):
  """Whether each complete person likes each item, from the rows."""
  liked = np.zeros((data.num_users, data.num_items), bool)
  liked[data.user_index, data.item_index] = data.rating > ABOVE
  return liked[files.OTHERS :]


def auc(world, data):
  """Area under the curve of the ranker for the complete people."""
  users = np.arange(files.OTHERS, data.num_users, dtype=np.int32)
  batch = {**world.evaluator.inputs, "user_index": users}
  logits, liked = world.ranker_logits(batch).numpy(), labels(data)
  rank = logits.ravel().argsort().argsort()[liked.ravel()]
  positives, negatives = liked.sum(), (~liked).sum()
  return (rank.sum() - positives * (positives - 1) / 2) / (positives * negatives)


def test_complete_people_are_logged_with_their_own_ratings(world, data):
  assert set(world.log.user_index) == set(range(files.OTHERS, data.num_users))
  expected = labels(data)[world.log.user_index - files.OTHERS, world.log.action]
  np.testing.assert_array_equal(world.log.reward, expected)


def test_complete_people_are_evaluated_without_what_they_were_shown_and_liked(world, data):
  np.testing.assert_array_equal(world.evaluator.relevance, labels(data))
  shown = np.zeros((files.FULL, 90), bool)
  rows = world.log.positives()
  shown[rows.user_index - files.OTHERS, rows.action] = True
  np.testing.assert_array_equal(world.evaluator.excluded, shown)


def test_the_evaluation_log_has_true_values(world, tmp_path):
  log = world.evaluation_log(Workspace(tmp_path))
  rows = np.arange(len(log.rows))
  expected = log.expected_rewards(rows)[rows, log.rows.action]
  np.testing.assert_array_equal(log.rows.reward, expected)


def test_halves_share_no_person(data):
  log = data.log(ABOVE).rows
  one, two = by_users(log, 3)
  assert len(one) + len(two) == len(log)
  assert not set(one.user_index) & set(two.user_index)


def test_every_log_has_a_policy_and_a_ranker_of_its_own(world, data, tmp_path):
  other = make(data, tmp_path, log_number=1)
  assert other.name != world.name
  assert (other.log.action != world.log.action).any()
  np.testing.assert_array_equal(other.evaluator.relevance, world.evaluator.relevance)


def test_rankers_may_be_strong_weak_or_an_adversary(world, data, tmp_path):
  weak = auc(make(data, tmp_path, ranker_pairs=20), data)
  adversary = auc(make(data, tmp_path, ranker_reversed=True), data)
  assert adversary < 0.45 < weak < auc(world, data)


def test_a_simulated_ranker_may_be_fitted_to_labels(tmp_path, monkeypatch):
  """Of a prepared environment's labels: 500 random pairs instead of the log."""
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: ready.DATA)
  config = ready.config(ready.contents().write(tmp_path))
  config = dataclasses.replace(config, behavior=FitConfig(epochs=1), ranker=FitConfig(epochs=1))
  made = [
    environment.make(
      dataclasses.replace(
        config, simulation=dataclasses.replace(config.simulation, log_number=1, ranker_pairs=pairs)
      ),
      Workspace(tmp_path / "stages"),
    )
    for pairs in (0, 500)
  ]
  np.testing.assert_array_equal(made[0].log.action, made[1].log.action)
  assert made[0].name != made[1].name
  with pytest.raises(InputError, match="ranker_pairs=500 changes nothing"):
    environment.make(
      dataclasses.replace(config, simulation=SimulationConfig(ranker_pairs=500)),
      Workspace(tmp_path / "stages"),
    )


@pytest.mark.parametrize(
  ("section", "changes", "message"),
  [
    ("data", {"environment": "ready"}, "environment=ready .*the ratings of jester are complete"),
    ("data", {"validation_users": 30}, "validation_users is 30, but jester has 30 users"),
    ("data", {"positive_above": 10.0}, "no ratings are above 10; choose another positive_above"),
    ("simulation", {"behavior_pairs": 10_000}, "10000 labelled pairs are wanted .*; ask for fewer"),
  ],
)
def test_settings_that_do_not_fit_are_refused(data, tmp_path, section, changes, message):
  config = dataclasses.replace(
    CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **changes)}
  )
  with pytest.raises(InputError, match=message):
    environment.make(config, Workspace(tmp_path), data)


def test_people_who_miss_an_item_are_not_complete(data):
  rows = slice(0, len(data) - 1)
  with pytest.raises(InputError, match="the last 30 users must rate every item once, 2700 ratings"):
    dataclasses.replace(
      data,
      user_index=data.user_index[rows],
      item_index=data.item_index[rows],
      rating=data.rating[rows],
    )


def test_the_preset_trains_from_a_directory(tmp_path):
  files.write(tmp_path)
  done = commands.run(
    "--flagfile=launch/jester.flags",
    f"--data_dir={tmp_path}",
    "--validation_users=10",
    "--behavior_pairs=200",
    "--ranker_epochs=1",
    "--epochs=1",
    "--num_slates=2",
    f"--workdir={tmp_path}/run",
    f"--export_dir={tmp_path}/export",
    export=False,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "run" / "metrics.json").is_file()
