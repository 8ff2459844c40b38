"""A reward model that has not seen the users it is asked about."""

import dataclasses

import numpy as np
import pytest

from tf_twostage.config import EncoderConfig, FitConfig
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Categorical, Id, Schema
from tf_twostage.errors import InputError
from tf_twostage.evaluation import reward_model
from tf_twostage.evaluation.cross_fitting import assign_folds
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.models import probit
from tf_twostage.models.encoders import EncodedTables
from tf_twostage.workspace import Workspace

USERS, ITEMS, ROWS, FOLDS = 40, 6, 600, 3
SCHEMA = Schema(
  user=(
    Id("user_id", tuple(map(str, range(USERS)))),
    Categorical("taste", ("even", "odd")),
  ),
  item=(Id("item_id", tuple(map(str, range(ITEMS)))),),
)
TABLES = EncodedTables.encode(
  SCHEMA,
  {
    "user_id": np.arange(USERS).astype(str),
    "taste": np.where(np.arange(USERS) % 2 == 0, "even", "odd"),
  },
  {"item_id": np.arange(ITEMS).astype(str)},
)


def evaluation_log(stage="log"):
  """Even users like even items, odd users odd ones, nine times in ten. The last is never shown."""
  rng = np.random.default_rng(0)
  users = np.repeat(np.arange(USERS, dtype=np.int32), ROWS // USERS)
  items = rng.integers(ITEMS - 1, size=ROWS).astype(np.int32)
  liked = ((users + items) % 2 == 0) == (rng.random(ROWS) < 0.9)
  propensities = np.full(ROWS, 1 / (ITEMS - 1), np.float32)
  return EvaluationLog(LogRows(users, items, propensities, liked.astype(np.float32)), ITEMS, stage)


def fitted(evaluation, stages):
  return reward_model.fit_reward_model(
    evaluation,
    TABLES,
    EncoderConfig(id_width=4, feature_width=3),
    FitConfig(epochs=5, batch_size=16),
    stages,
    seed=0,
  )


@pytest.fixture(scope="module", autouse=True)
def few_folds():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reward_model, "_FOLDS", FOLDS)
    yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  return Workspace(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def model(stages):
  return fitted(evaluation_log(), stages)


def test_it_learns_who_likes_what(model):
  log = evaluation_log().rows
  predicted = model(np.arange(ROWS))[:, : ITEMS - 1]
  liked = (log.user_index[:, None] + np.arange(ITEMS - 1)) % 2 == 0
  assert predicted[liked].mean() > 0.7
  assert predicted[~liked].mean() < 0.3
  assert 0.3 < model.explained(log) < 0.8  # a tenth of the rewards cannot be foreseen


def test_an_item_that_was_never_shown_is_near_the_usual_reward(model):
  usual = evaluation_log().rows.reward.mean()
  assert abs(model(np.arange(ROWS))[:, ITEMS - 1] - usual).max() < 0.15


def test_rewards_of_a_fold_do_not_move_its_own_predictions_but_their_scale_does(model, stages):
  evaluation = evaluation_log("another")
  log = evaluation.rows
  folds = assign_folds(ROWS, FOLDS, groups=log.user_index, seed=0)
  np.testing.assert_array_equal(folds, model.folds)
  reward = 50 * np.where(folds == 2, 1 - log.reward, log.reward)
  other = fitted(
    dataclasses.replace(evaluation, rows=dataclasses.replace(log, reward=reward)), stages
  )
  own, others = np.flatnonzero(folds == 2), np.flatnonzero(folds == 1)
  np.testing.assert_allclose(other(own), 50 * model(own), rtol=1e-4)
  assert np.abs(other(others) - 50 * model(others)).max() > 1


def test_users_who_differ_in_their_id_alone_are_alike(model):
  log = evaluation_log().rows
  for fold in range(FOLDS):
    rows = np.flatnonzero((model.folds == fold) & (log.user_index % 2 == 0))
    predicted = model(rows)
    np.testing.assert_allclose(predicted, np.broadcast_to(predicted[0], predicted.shape), atol=1e-6)


def test_it_is_found_again(model, stages, monkeypatch):
  monkeypatch.setattr(reward_model, "fit", lambda *_, **__: pytest.fail("fitted again"))
  again = fitted(evaluation_log(), stages)
  np.testing.assert_array_equal(again(np.arange(ROWS)), model(np.arange(ROWS)))


def test_there_are_as_many_folds_as_users_where_these_are_few(stages):
  evaluation = evaluation_log("few")
  log = evaluation.rows.select(evaluation.rows.user_index < FOLDS - 1)
  model = fitted(dataclasses.replace(evaluation, rows=log), stages)
  assert len(np.unique(model.folds)) == FOLDS - 1
  assert np.isfinite(model(np.arange(len(log)))).all()


def test_one_user_is_refused(stages):
  evaluation = evaluation_log("one")
  log = evaluation.rows.select(evaluation.rows.user_index < 1)
  with pytest.raises(InputError, match=r"rows of 1 user: .* log more users"):
    fitted(dataclasses.replace(evaluation, rows=log), stages)


@pytest.fixture(scope="module")
def bayesian(stages):
  quick = probit.Sampling(sweeps=60, burn_in=20, draws=10)
  return lambda log, pessimism=0.0: reward_model.fit_bayesian_rewards(
    log, TABLES, stages, pessimism=pessimism, sampling=quick
  )


def test_the_bayesian_model_learns_who_likes_what(bayesian):
  log = evaluation_log().rows
  model = bayesian(evaluation_log())
  predicted = model(np.arange(ROWS))[:, : ITEMS - 1]
  liked = (log.user_index[:, None] + np.arange(ITEMS - 1)) % 2 == 0
  assert predicted[liked].mean() > 0.65
  assert predicted[~liked].mean() < 0.35
  assert 0.2 < model.explained(log) < 0.8
  np.testing.assert_allclose(
    model.logged(log.action), model(np.arange(ROWS))[np.arange(ROWS), log.action], atol=1e-5
  )


def test_rewards_of_a_fold_do_not_move_its_own_bayesian_predictions(bayesian):
  evaluation = evaluation_log("changed")
  log, model = evaluation.rows, bayesian(evaluation_log())
  reward = np.where(model.folds == 2, 1 - log.reward, log.reward)
  changed = dataclasses.replace(evaluation, rows=dataclasses.replace(log, reward=reward))
  other = bayesian(changed)
  own, others = np.flatnonzero(model.folds == 2), np.flatnonzero(model.folds == 1)
  np.testing.assert_array_equal(other(own), model(own))
  assert np.abs(other(others) - model(others)).max() > 0.05


def test_pessimism_takes_deviations_off(bayesian):
  usual, careful = (bayesian(evaluation_log(), pessimism) for pessimism in (0.0, 1.0))
  rows = np.arange(5)
  assert (careful(rows) < usual(rows)).all()
  assert (careful(rows) >= 0).all()
