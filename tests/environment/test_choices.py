"""Ratings and orders as a log: later choices evaluate, and nothing is estimated off-policy."""

import dataclasses
import importlib

import numpy as np
import pandas as pd
import pytest

from tf_twostage import BanditLog, TwoStageRecommender, environment, estimate_propensities, evaluate
from tf_twostage.config import (
  Config,
  DataConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
  UserLogConfig,
)
from tf_twostage.data.sets import RatingsData, make_synthetic
from tf_twostage.environment import choices
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

USERS, ITEMS = 60, 12
FAST = FitConfig(epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def rated() -> pd.DataFrame:
  """Users of two kinds, who like items of one parity; a pair at most once."""
  rng = np.random.default_rng(0)
  user = np.repeat(np.arange(USERS), 8)
  item = rng.random((USERS, ITEMS)).argsort(axis=1)[:, :8].ravel()
  likes = user % 2 == item % 2
  rating = np.where(likes, rng.integers(4, 6, len(user)), rng.integers(1, 4, len(user)))
  frame = pd.DataFrame(
    {"user": user, "item": item, "rating": rating, "time": rng.random(len(user))}
  )
  return frame.assign(kind=(user % 2).astype(str))


def ratings_of(frame, rating="rating") -> RatingsData:
  columns = {"user": "user", "item": "item", "rating": rating, "time": "time"}
  return RatingsData.from_pandas(frame, **columns, user_features={"kind": "categorical"})


CONFIG = Config(
  slate_size=5,
  loss="cross_entropy",
  data=DataConfig(dataset="ratings"),
  ranker=FAST,
)


@pytest.fixture(scope="module")
def made(rated, tmp_path_factory):
  workspace = Workspace(tmp_path_factory.mktemp("made") / "stages")
  return environment.make(CONFIG, workspace, ratings_of(rated))


def test_the_latest_choices_of_items_new_to_a_user_evaluate(rated, made):
  evaluator, start = made.evaluator, 0
  ordered = rated.sort_values("time").reset_index(drop=True)
  first, second = round(0.7 * len(rated)), round(0.85 * len(rated))
  for begin, end, count in (
    (first, second, evaluator.num_validation),
    (second, len(rated), len(evaluator.relevance) - evaluator.num_validation),
  ):
    known, rows = ordered[:begin], ordered[begin:end]
    liked = rows[rows["rating"] > 3]
    assert count == liked["user"].nunique()
    for place, user in enumerate(sorted(liked["user"].unique()), start):
      chosen, before = (
        np.bincount(part.loc[part["user"] == user, "item"], minlength=ITEMS) > 0
        for part in (liked, known)
      )
      np.testing.assert_array_equal(evaluator.relevance[place], chosen & ~before)
      np.testing.assert_array_equal(evaluator.excluded[place], before)
    start += count


def test_propensities_of_training_rows_are_the_exposures(made):
  assert made.log.propensity.shape == made.log.reward.shape
  assert any("exposure is ESTIMATED" in note for note in made.notes)
  assert any("not what was shown" in note for note in made.notes)


def test_generators_start_from_popularity(made):
  counts = np.bincount(made.log.action, made.log.reward, minlength=ITEMS)
  vectors = TwoStageRecommender("cross_entropy").fresh_towers(made).candidates()
  expected = np.log((counts + 1) / (counts.mean() + 1))
  np.testing.assert_allclose(vectors[:, -1], expected, rtol=1e-5)
  training = GeneratorConfig(item_bias=False)
  without = TwoStageRecommender("cross_entropy", training=training).fresh_towers(made).candidates()
  assert without.shape[1] == vectors.shape[1] - 1


def test_off_policy_evaluation_is_refused(rated, made):
  with pytest.raises(InputError, match="ratings or orders: what users chose"):
    made.evaluation_log(None)
  log = ratings_of(rated).log()
  with pytest.raises(InputError, match="ratings or orders: what users chose"):
    evaluate(log, {"uniform": np.full(ITEMS, 1 / ITEMS)})
  with pytest.raises(InputError, match="ratings or orders: what users chose"):
    estimate_propensities(log)


def test_the_report_says_what_cannot_be_claimed(rated):
  report = str(ratings_of(rated, rating=None).log().check())
  assert "rows are ratings or orders, not what was shown" in report
  assert "every row has a reward above 0" not in report


def test_orders_with_exposures_can_be_evaluated(rated):
  rated = rated.assign(exposure=1 / ITEMS)
  log = BanditLog.from_pandas(rated, user="user", item="item", reward=None, propensity="exposure")
  assert log.impressions
  found = evaluate(log, {"uniform": np.full(ITEMS, 1 / ITEMS)}, estimators=["ips"])
  assert found.to_frame()["value"].tolist() == pytest.approx([1.0, 1.0])


def test_pairs_that_were_drawn_are_not_rewarded(made):
  rows = choices._with_drawn(made.log, ITEMS, seed=0)
  rewarded = int(made.log.reward.sum())
  assert len(rows) == len(made.log) + 4 * rewarded
  drawn = rows.select(slice(len(made.log), None))
  assert not drawn.reward.any()
  counts = np.bincount(drawn.user_index, minlength=USERS)
  np.testing.assert_array_equal(
    counts, 4 * np.bincount(made.log.user_index, made.log.reward, minlength=USERS)
  )


def test_many_users_are_sampled_and_noted(rated, monkeypatch):
  monkeypatch.setattr(choices, "_PAIRS", 10 * ITEMS)
  parts = ratings_of(rated).log().split("time")
  logs = dict(zip(("train", "validation", "test"), parts, strict=True))
  (users, *_), _, notes = choices._held_out(logs, seed=0)
  assert 0 < len(users) <= 10
  assert [note[:20] for note in notes] == ["metrics are of 5 of "] * 2


def test_a_recommender_learns_what_users_order(rated):
  orders = ratings_of(rated[rated["rating"] > 3], None).log(history="history")
  training = dataclasses.replace(Config().generator, epochs=4, batch_size=32, learning_rate=0.2)
  model = TwoStageRecommender(training=training, ranker_training=FAST, slate_size=5)
  model.fit(orders)
  assert model.config.loss == "cross_entropy"
  ndcg = model.history["validation/one_stage/ndcg@10"].max()
  baselines = model.environment.baselines(Workspace(model._stages), 5)
  assert ndcg > baselines["popularity"]["validation"]["one_stage"]["ndcg@10"]
  asked = pd.DataFrame({"user_id": ["1", "1"], "history": [["1", "3"], ["0", "2"]]})
  scores = model.recommend(asked, k=1)["generator_score"]
  assert scores[0] != scores[1]  # what a user just did counts


def test_a_model_without_a_loss_keeps_its_default_for_impressions(rated):
  model = TwoStageRecommender(slate_size=5, ranker_training=FAST)
  assert model.config.loss == "ips"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"user_log": UserLogConfig(stream=True)}, "stream: ratings are read into memory"),
    ({}, "set data_dir to their directory, or log"),
    (
      {"data": DataConfig(dataset="ratings", data_dir="d"), "user_log": UserLogConfig(items="i")},
      "data_dir holds items and users, too",
    ),
    ({"data": DataConfig(dataset="ratings", data_dir="/none")}, "/none: no such directory"),
  ],
)
def test_settings_that_do_not_fit_files_are_refused(changes, message, tmp_path):
  with pytest.raises(InputError, match=message):
    environment.make(dataclasses.replace(CONFIG, **changes), Workspace(tmp_path))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data": DataConfig(dataset="ratings", positive_above=4)},
      "positive_above=4.0 changes nothing",
    ),
    (
      {"data": DataConfig(dataset="ratings", environment="e")},
      "environment=e replaces a simulation",
    ),
    ({"simulation": SimulationConfig(simulate=True)}, "orders are all positive"),
    ({"simulation": SimulationConfig(log_number=1)}, "log_number is 1"),
    (
      {
        "data": DataConfig(dataset="ratings", validation_users=30, history=True),
        "simulation": SimulationConfig(simulate=True),
      },
      "history: only ratings that are learned from themselves",
    ),
  ],
)
def test_settings_that_do_not_fit_orders_are_refused(changes, message, rated, tmp_path):
  settings = {"data": DataConfig(dataset="ratings", validation_users=30), "slate_size": 10}
  config = dataclasses.replace(CONFIG, **{**settings, **changes})
  with pytest.raises(InputError, match=message):
    environment.make(config, Workspace(tmp_path), ratings_of(rated, None))


def test_ratings_are_simulated_where_that_is_asked(rated, monkeypatch, tmp_path):
  module = importlib.import_module("tf_twostage.environment.make")  # its function has its name
  monkeypatch.setattr(module, "simulated", lambda config, data, workspace: data.name)
  config = dataclasses.replace(
    CONFIG,
    slate_size=10,
    data=DataConfig(dataset="ratings", validation_users=30),
    simulation=SimulationConfig(simulate=True),
  )
  assert environment.make(config, Workspace(tmp_path), ratings_of(rated)) == "ratings"


def test_other_data_sets_of_ratings_can_be_logs_too(monkeypatch, tmp_path):
  module = importlib.import_module("tf_twostage.environment.make")
  monkeypatch.setattr(module, "log_environment", lambda config, log, *others: log)
  config = dataclasses.replace(
    CONFIG,
    data=DataConfig(dataset="synthetic"),
    simulation=SimulationConfig(simulate=False),
  )
  log = environment.make(config, Workspace(tmp_path), make_synthetic(50, 30, 500))
  assert len(log) == 500
  assert not log.impressions


def test_histories_end_where_the_part_begins(rated, tmp_path):
  config = dataclasses.replace(CONFIG, data=DataConfig(dataset="ratings", history=True))
  found = environment.make(config, Workspace(tmp_path), ratings_of(rated))
  evaluator = found.evaluator
  codes, users = evaluator.inputs["user"]["history"], evaluator.inputs["user_index"]
  ordered = rated.sort_values("time")
  for begin, rows in (
    (round(0.7 * len(rated)), range(evaluator.num_validation)),
    (round(0.85 * len(rated)), range(evaluator.num_validation, len(users))),
  ):
    known = ordered[:begin]
    liked = known[known["rating"] > 3]
    for row in rows:
      expected = liked.loc[liked["user"] == users[row], "item"].tolist()
      assert [code - 2 for code in codes[row] if code] == expected


def test_a_history_needs_times(rated):
  data = RatingsData.from_pandas(rated, user="user", item="item", rating="rating")
  with pytest.raises(InputError, match="a history needs the time of each row"):
    data.log(history="history")


def test_a_split_without_new_choices_is_refused(tmp_path):
  frame = pd.DataFrame({"user": [0, 1] * 10, "item": [0, 1] * 10, "time": range(20), "kind": "a"})
  with pytest.raises(
    InputError, match="no user chooses an item in the validation rows that is new"
  ):
    environment.make(
      dataclasses.replace(CONFIG, slate_size=2), Workspace(tmp_path), ratings_of(frame, None)
    )
