"""Estimated propensities of logs whose true ones are known."""

import dataclasses
import json

import numpy as np
import pytest

from tests import user_logs
from tests.data.files import small_log
from tf_twostage.config import Config, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import propensities
from tf_twostage.workspace import Workspace

CONFIG = Config(behavior=FitConfig(epochs=8, batch_size=64))


def load(world, directory):
  """The log as one without propensities, and the true ones."""
  world.schema["propensity"] = None
  world.write(directory)
  names = ("log.csv", "items.csv", "schema.yaml", "users.csv")
  data = small_log.read(*(directory / name for name in names))
  return data, world.log["propensity"].to_numpy()


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
  """An estimate where the logging policy knows features alone; the truth; where it is kept."""
  root = tmp_path_factory.mktemp("features")
  data, truth = load(user_logs.make(2500), root)
  found, stage = propensities.estimate(CONFIG, data, Workspace(root / "stages"))
  return data, found, truth, root / "stages" / stage


def test_estimates_are_near_the_truth(estimated):
  _, found, truth, _ = estimated
  error = np.log(found.values / truth)
  assert abs(error.mean()) < 0.08
  assert error.std() < 0.35
  assert np.corrcoef(np.log(found.values), np.log(truth))[0, 1] > 0.9


def test_they_are_calibrated(estimated):
  data, found, _, _ = estimated
  assert found.calibration_error < 0.05
  # IPS of a policy that is uniform: weights have mean 1.
  assert np.mean(1 / data.num_items / found.values) == pytest.approx(1, abs=0.1)


def test_users_improve_on_shares(estimated):
  _, found, truth, _ = estimated
  assert not found.uses_ids
  assert found.share_log_likelihood + 0.05 < found.log_likelihood < np.log(truth).mean() + 0.02


def test_a_stage_marks_them_as_estimated(estimated):
  data, found, _, stage = estimated
  record = json.loads((stage / "stage.json").read_text())
  assert record["inputs"]["propensities"] == "estimated"
  assert "ESTIMATED" in found.note()
  assert not data.estimated_propensities
  assert data.with_propensities(found.values).estimated_propensities


def test_a_finished_estimate_is_loaded(estimated, monkeypatch):
  data, found, _, stage = estimated
  monkeypatch.setattr(propensities, "cross_fitted", None)
  again, name = propensities.estimate(CONFIG, data, Workspace(stage.parent))
  assert name == stage.name
  np.testing.assert_array_equal(again.values, found.values)
  assert again.facts() == found.facts()


def test_ids_are_used_where_the_policy_depends_on_the_user(tmp_path):
  data, truth = load(user_logs.make(4000, by_user=True), tmp_path)
  found = propensities.cross_fitted(CONFIG, data)
  assert found.uses_ids
  assert np.corrcoef(np.log(found.values), np.log(truth))[0, 1] > 0.75


def test_a_policy_without_context_is_estimated_by_shares(tmp_path):
  world = user_logs.make(1500)
  rng = np.random.default_rng(1)
  popularity = rng.dirichlet(np.full(user_logs.ITEMS, 5.0))
  drawn = rng.choice(user_logs.ITEMS, size=len(world.log), p=popularity)
  world.log["item_id"] = np.char.add("i", drawn.astype(str))
  world.log["propensity"] = popularity[drawn]
  data, truth = load(world, tmp_path)
  found = propensities.cross_fitted(CONFIG, data)
  assert found.scale < 0.5
  assert np.abs(np.log(found.values / truth)).mean() < 0.15


def test_models_of_features_see_no_row_of_the_users_whose_propensities_they_predict(
  estimated, monkeypatch
):
  data, _, _, _ = estimated
  learned = []

  def spy(log, *arguments, **options):
    learned.append(log)

  monkeypatch.setattr(LogRows, "batches", spy)
  monkeypatch.setattr(propensities, "fit", lambda *_, **__: None)
  propensities.cross_fitted(CONFIG, data)
  assert len(learned) == 2 * 3  # of features, of ids; three folds each
  rows = len(data.rows)
  assert sum(map(len, learned[:3])) == sum(map(len, learned[3:])) == 2 * rows
  for log in learned[:3]:
    strangers = ~np.isin(data.rows.user_index, log.user_index)
    assert strangers.sum() == rows - len(log)


def test_shares_are_smoothed_and_never_zero():
  log = LogRows([0, 0, 0], [1, 1, 2], None, [0.0, 0.0, 0.0])
  # 3 rows, 5 items: each counts as shown 0.1 * 3 / 5 times more.
  counts = np.array([0, 2, 1, 0, 0]) + 0.06
  np.testing.assert_allclose(propensities.shares(log, 5), counts / counts.sum())
  many = dataclasses.replace(log, user_index=[0] * 60, action=[1] * 60, reward=[0.0] * 60)
  np.testing.assert_allclose(propensities.shares(many, 2), [1 / 62, 61 / 62])


def test_the_floor_is_one_row_of_all(estimated):
  data, found, _, _ = estimated
  assert found.values.min() >= np.float32(1 / len(data.rows))
  assert found.values.max() <= 1
