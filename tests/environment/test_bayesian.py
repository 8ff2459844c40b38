"""The Bayesian baseline and the target slates of an environment."""

import dataclasses

import numpy as np
import pytest

from tests import prepared_environment
from tests.prepared_environment import DATA, ITEMS, SLATE, USERS
from tf_twostage import TwoStageRecommender, environment
from tf_twostage.config import RewardConfig
from tf_twostage.data import sets
from tf_twostage.environment import bayesian
from tf_twostage.errors import InputError
from tf_twostage.losses import SafeSlate
from tf_twostage.models import probit
from tf_twostage.workspace import Workspace

QUICK = probit.of_sweeps(20, seed=0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: DATA)


@pytest.fixture
def config(tmp_path):
  directory = prepared_environment.contents().write(tmp_path / "files")
  made = prepared_environment.config(directory, epochs=1)
  return dataclasses.replace(
    made, loss="safe_slate", reward=RewardConfig("bayesian", reward_sweeps=20)
  )


def test_slates_hold_the_best_and_then_the_best_that_the_ranker_prefers_less():
  scores = np.array([[9, 8, 7, 6, 5, 4, 3]], np.float32)
  ranked = np.array([[5, 3, 9, 1, 4, 2, 0]], np.float32)  # 3 is the least of items 0 and 1
  assert bayesian.safe_slates(scores, ranked, 2, 5).numpy().tolist() == [[0, 1, 3, 5, 6]]


def test_slates_are_filled_where_few_items_are_safe():
  scores = np.array([[9, 8, 7, 6, 5]], np.float32)
  ranked = np.array([[0, 3, 9, -1, 4]], np.float32)
  assert bayesian.safe_slates(scores, ranked, 1, 4).numpy().tolist() == [[0, 3, 1, 2]]


def test_the_baseline_is_in_the_tables_and_fitted_once(config, tmp_path, monkeypatch):
  stages = Workspace(tmp_path / "stages")
  found = environment.make(config, stages)
  scores = found.baselines(stages, SLATE)
  assert [*scores] == ["popularity", "ranker, all items", "random", "bayesian"]
  assert np.isfinite(scores["bayesian"]["test"]["two_stage"]["precision@10"])
  monkeypatch.setattr(probit, "sample", lambda *_: pytest.fail("sampled again"))
  again = bayesian.pooled_scores(found, stages, QUICK, slate_size=SLATE)
  assert again.shape == (USERS, ITEMS)
  assert environment.make(config, stages).baselines(stages, SLATE) == scores


def test_pessimism_changes_the_order(config, tmp_path, monkeypatch):
  monkeypatch.setattr(bayesian, "SHARES", (1.0,))
  stages = Workspace(tmp_path / "stages")
  found = environment.make(config, stages)
  usual, careful = (
    bayesian.pooled_scores(found, stages, QUICK, slate_size=SLATE, pessimism=pessimism)
    for pessimism in (0.0, 1.0)
  )
  assert (usual.argsort() != careful.argsort()).any()


def test_targets_leave_out_what_is_excluded(config, tmp_path):
  stages = Workspace(tmp_path / "stages")
  found = environment.make(config, stages)
  rows = bayesian.target_rows(found, SafeSlate(slate_size=6), stages, QUICK)
  users = np.unique(found.log.user_index)
  assert len(rows) == len(found.log)
  for user in users:
    assert len(set(rows.slates[user])) == 6
    assert not found.evaluator.excluded[user, rows.slates[user]].any()
  batch = next(iter(rows.batches(found.tables.users, batch_size=4, seed=0)))
  np.testing.assert_array_equal(batch["action"], rows.slates[batch["user_index"].numpy()])


def test_the_loss_trains_a_generator(config, tmp_path):
  found = environment.make(config, Workspace(tmp_path / "stages"))
  model = TwoStageRecommender.from_config(config).fit(found, workdir=tmp_path, progress=False)
  assert np.isfinite(model.history["mean_loss"]).all()
  with pytest.raises(InputError, match="safe_slate learns from whole environments"):
    model.fit_rows(found, found.log)


def test_supports_are_refused(config):
  support = dataclasses.replace(config.support, support_size=1000)
  with pytest.raises(InputError, match="SafeSlate needs the whole catalogue"):
    TwoStageRecommender.from_config(dataclasses.replace(config, support=support))
