"""The Bayesian baseline and the target slates of an environment."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

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
  monkeypatch.setattr(bayesian, "SHARES", (1.0,))
  monkeypatch.setattr(bayesian, "RANKER_SHARES", (0.0, 0.4))


@pytest.fixture
def config(tmp_path):
  directory = prepared_environment.contents().write(tmp_path / "files")
  made = prepared_environment.config(directory, epochs=1)
  return dataclasses.replace(
    made, loss="safe_slate", reward=RewardConfig("bayesian", reward_sweeps=20)
  )


def _order(scores, ranked, top, margin=0.0):
  rows = np.array([scores], np.float32), np.array([ranked], np.float32)
  found = bayesian.safe_scores(*rows, top, margin)
  return np.argsort(-found.numpy()[0]).tolist()


def test_slates_hold_the_best_and_then_the_best_that_the_ranker_prefers_less():
  # 3 is the ranker's least score of items 0 and 1.
  assert _order([9, 8, 7, 6, 5, 4, 3], [5, 3, 9, 1, 4, 2, 0], top=2) == [0, 1, 3, 5, 6, 2, 4]


def test_others_lie_below_the_best_by_a_margin():
  assert _order([9, 8, 7, 6, 5], [3, 2.5, 1.5, 2.9, 0], top=1, margin=1.0) == [0, 2, 4, 1, 3]


def test_slates_are_filled_where_few_items_are_safe():
  assert _order([9, 8, 7, 6, 5], [0, 3, 9, -1, 4], top=1) == [0, 3, 1, 2, 4]


def test_the_ranker_leaves_the_best_of_safe_slates_on_top():
  scores, ranked = np.random.default_rng(0).normal(size=(2, 40, 500)).astype(np.float32)
  ranked += 0.7 * scores
  best, slates = (
    tf.math.top_k(bayesian.safe_scores(scores, ranked, 3), k).indices.numpy() for k in (3, 12)
  )
  of_slates = np.take_along_axis(ranked, slates, axis=1)
  shown = np.take_along_axis(slates, np.argsort(-of_slates, axis=1)[:, :3], axis=1)
  least = np.take_along_axis(ranked, best, axis=1).min(axis=1, keepdims=True)
  enough = (ranked < least).sum(axis=1) >= 9
  assert enough.sum() > 30
  np.testing.assert_array_equal(np.sort(shown)[enough], np.sort(best)[enough])


def test_mixtures_hold_shares_of_all_three():
  table = tf.constant([[1.0, 2.0], [3.0, 4.0]])
  mixed = bayesian.Mixture(table, lambda batch: tf.constant([[10.0, 1e9]]), 0.25)
  assert mixed({"user_index": [1]}).numpy()[0, 0] == pytest.approx(0.75 * 3 + 0.25 * 10)
  assert mixed({"user_index": [1]}).numpy()[0, 1] < 10  # the ranker's logits have a limit


def test_the_baseline_is_in_the_tables_and_fitted_once(config, tmp_path, monkeypatch):
  stages = Workspace(tmp_path / "stages")
  found = environment.make(config, stages)
  scores = found.baselines(stages, SLATE)
  assert [*scores] == ["popularity", "ranker, all items", "random", "bayesian"]
  assert np.isfinite(scores["bayesian"]["test"]["two_stage"]["precision@10"])
  monkeypatch.setattr(probit, "sample", lambda *_: pytest.fail("sampled again"))
  again = bayesian.mixture(found, SafeSlate(slate_size=SLATE), stages, QUICK)
  assert again.table.shape == (USERS, ITEMS)
  assert environment.make(config, stages).baselines(stages, SLATE) == scores


def test_other_constants_of_the_model_make_other_baselines(config, tmp_path, monkeypatch):
  stages = Workspace(tmp_path / "stages")
  environment.make(config, stages).baselines(stages, SLATE)
  monkeypatch.setattr(probit, "_MAX_STDDEVS", (3.0, 0.1))
  environment.make(config, stages).baselines(stages, SLATE)
  assert len(list((tmp_path / "stages").glob("baselines-*"))) == 2


def test_pessimism_changes_the_order(config, tmp_path):
  stages = Workspace(tmp_path / "stages")
  found = environment.make(config, stages)
  orders = [
    tf.argsort(bayesian.mixture(found, loss, stages, QUICK).table).numpy()
    for loss in (SafeSlate(slate_size=SLATE, pessimism=pessimism) for pessimism in (0.0, 1.0))
  ]
  assert (orders[0] != orders[1]).any()


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
