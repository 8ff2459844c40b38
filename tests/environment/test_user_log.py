"""Logs of one's own as environments: what is held out, which ranker, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from launch import train
from tests import user_logs
from tests.external_rankers import Ranker, keras_model
from tests.serving import small
from tf_twostage import TwoStageRecommender, environment, experiment
from tf_twostage.config import (
  Config,
  DataConfig,
  EncoderConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
  UserLogConfig,
)
from tf_twostage.errors import InputError
from tf_twostage.metrics import HELD_OUT
from tf_twostage.policies import TwoStagePolicy
from tf_twostage.training import loop
from tf_twostage.workspace import Workspace

ROWS, SLATE = 1500, 5
CONFIG = Config(
  slate_size=SLATE,
  data=DataConfig(dataset="user_log"),
  encoder=EncoderConfig(embedding_stddev=0.1),
  ranker=FitConfig(epochs=4, batch_size=64),
  behavior=FitConfig(epochs=3, batch_size=64),
  generator=GeneratorConfig(epochs=3, batch_size=64, item_bias=True),
)


def settings(directory, **changes):
  own = {f: str(directory / f"{f}.csv") for f in ("log", "items", "users")}
  own |= {"schema": str(directory / "schema.yaml"), "validation_share": 0.1, "test_share": 0.1}
  return dataclasses.replace(CONFIG, user_log=UserLogConfig(**{**own, **changes}))


def make(config, directory):
  return environment.make(config, Workspace(directory / "stages"))


@pytest.fixture(scope="module")
def world():
  return user_logs.make(ROWS)


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
  return world.write(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def made(written):
  return make(settings(written), written)


def test_the_latest_rows_are_held_out(world, made):
  place = {name: i for i, name in enumerate(world.items["item_id"])}
  action = world.log["item_id"].map(place).to_numpy()
  cuts = {"validation": slice(1200, 1350), "test": slice(1350, 1500)}
  np.testing.assert_array_equal(made.log.action, action[:1200])
  for split, rows in cuts.items():
    np.testing.assert_array_equal(made.evaluator.logs[split].rows.action, action[rows])
  np.testing.assert_array_equal(made.evaluation_log(None).rows.action, action[1350:])
  assert made.facts["rows"] == {"train": 1200, "validation": 150, "test": 150}
  assert made.facts["propensities"] == {"estimated": False}


def test_reward_model_and_ranker_are_one_where_no_other_is_given(made):
  users = np.arange(4)
  batch = {
    "user": {k: np.asarray(v)[users] for k, v in made.tables.users.items()},
    "context": {},
    "user_index": users,
  }
  logits = made.ranker_logits(batch).numpy()
  np.testing.assert_allclose(
    made.evaluator.reward_model(batch), 1 / (1 + np.exp(-logits)), rtol=1e-4
  )


def test_baselines_are_values_with_errors(made, tmp_path):
  scores = made.baselines(Workspace(tmp_path), SLATE)
  assert set(scores) == {"logging policy", "popularity", "ranker, all items", "random"}
  assert scores["logging policy"]["test"]["one_stage"]["snips"] == pytest.approx(
    made.evaluator.logs["test"].rows.reward.mean()
  )
  assert scores["ranker, all items"]["test"]["two_stage"]["snips_error"] > 0


def test_what_a_generator_earns_is_about_what_is_estimated(world, written, made):
  """One sure thing of an uncertain estimate: the truth lies within four standard errors."""
  config = settings(written)
  model = TwoStageRecommender.from_config(config).fit(made, workdir=written, progress=False)
  towers, history = model.towers, model.epochs
  users = made.tables.users
  batch = {"user": users, "context": {}, "user_index": np.arange(user_logs.USERS)}
  policy = TwoStagePolicy(towers(users), made.ranker_logits(batch), SLATE)
  truth = world.value(policy.probabilities().numpy())
  assert truth > world.value(world.logging) + 0.1
  scores = loop.best_epoch(history)["scores"]["test"]["two_stage"]
  assert scores["dr"] == pytest.approx(truth, abs=4 * scores["dr_error"])
  best = max(history, key=lambda e: e["scores"]["validation"]["two_stage"]["gain_lower_bound"])
  assert loop.best_epoch(history) == best


def test_a_split_that_leaves_one_user_is_named(written, caplog):
  make(settings(written, split="user", test_share=1 / user_logs.USERS), written)
  assert "one user is left for test; errors of estimates need two" in caplog.text


def test_names_follow_rows_and_rankers(world, written, made, tmp_path):
  again = make(settings(written), written)
  assert again.name == made.name
  others = [
    make(settings(written, test_share=0.2), written),
    make(settings(written, split="random"), written),
    make(settings(written, ranker=str(Ranker().save(tmp_path / "a"))), written),
    make(settings(written, ranker=str(Ranker(1).save(tmp_path / "b"))), written),
  ]
  assert len({made.name, *(other.name for other in others)}) == 5


def test_a_given_ranker_goes_the_whole_way(written, tmp_path):
  """Up to an export that a fresh process replays."""
  path = tmp_path / "ranker.keras"
  keras_model().save(path)
  metrics, _ = train.run(settings(written, ranker=str(path)), written, tmp_path / "export")
  assert metrics["ranker"] == f"ranker {path}"


def test_a_saved_model_ranks_for_its_environment(world, written, tmp_path):
  made = make(settings(written, ranker=str(Ranker().save(tmp_path / "ranker"))), written)
  features = world.users["segment"], world.items["genre"], world.items["price"]
  logits = made.ranker_logits({"user_index": np.arange(user_logs.USERS)})
  np.testing.assert_allclose(logits, Ranker().reference(*features), rtol=1e-5)


def test_scores_in_the_log_are_imitated(tmp_path):
  written = user_logs.make(ROWS, ranker_score=True).write(tmp_path)
  made = make(settings(written), tmp_path)
  facts = made.facts["ranker_fit"]
  assert facts["r2"] > 0.8
  assert facts["correlation"] > 0.9
  assert facts["rows"] == 150
  assert any("R² is" in note for note in made.notes)
  # An export's scores are the logits, up to a constant.
  users = np.arange(6)
  codes = {name: np.asarray(values)[users] for name, values in made.tables.users.items()}
  batch = {"user": codes, "context": {}, "user_index": users}
  slate = np.tile(np.arange(user_logs.ITEMS), (6, 1))
  logits, scores = made.ranker_logits(batch).numpy(), made.slate_ranker({}, codes, slate).numpy()
  np.testing.assert_allclose(logits - logits[0, 0], scores - scores[0, 0], atol=1e-4)


def test_scores_that_look_like_probabilities_are_noted(tmp_path):
  world = user_logs.make(300, ranker_score=True)
  world.log["score"] = 1 / (1 + np.exp(-world.log["score"]))
  made = make(settings(world.write(tmp_path)), tmp_path)
  assert any("give logits instead" in note for note in made.notes)


def test_a_log_without_propensities_says_so_everywhere(world, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)
  lacking = dataclasses.replace(world, schema={**world.schema, "propensity": None})
  config = settings(lacking.write(tmp_path))
  metrics, summary = train.run(config, tmp_path / "run", tmp_path / "export")
  assert metrics["propensities"]["estimated"]
  assert 0 <= metrics["propensities"]["calibration_error"] < 0.1
  assert any("ESTIMATED" in note for note in metrics["notes"])
  assert "propensities are ESTIMATED" in summary
  (stage,) = (tmp_path / "run" / "stages").glob("propensities-*")
  assert json.loads((stage / "stage.json").read_text())["inputs"]["propensities"] == "estimated"
  events = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("events.out.tfevents.*"))
  assert b"propensities are ESTIMATED" in events


def test_rewards_of_any_size_are_expected_in_their_own_units(world, tmp_path):
  scaled = dataclasses.replace(world, log=world.log.assign(reward=20 * world.log["reward"]))
  made = make(settings(scaled.write(tmp_path)), tmp_path)
  log = made.evaluator.logs["test"].rows
  batch = {
    "user": {k: np.asarray(v)[log.user_index] for k, v in made.tables.users.items()},
    "context": {},
    "user_index": log.user_index,
  }
  expected = made.evaluator.reward_model(batch).numpy()[np.arange(len(log)), log.action]
  assert expected.mean() == pytest.approx(log.reward.mean(), rel=0.2)


def test_experiments_compare_values(written, made, monkeypatch):
  def fitted(config, cells, workdir, processes):
    for cell, own in cells.items():
      model = TwoStageRecommender.from_config(own)
      model.fit(made, workdir=workdir, progress=False)
      yield cell, model.epochs, 0.0

  monkeypatch.setattr(experiment, "_fitted", fitted)
  config = dataclasses.replace(
    settings(written), generator=dataclasses.replace(CONFIG.generator, epochs=1)
  )
  variants = [
    experiment.Variant(name, dataclasses.replace(config, loss=name, loss_options={}), name)
    for name in ("cross_entropy", "ips")
  ]
  text = experiment.run(config, variants, seeds=2, workdir=written)
  assert "Test rows, generator + ranker (mean reward of an item)" in text
  assert "SNIPS" in text
  assert f"Paired over seeds, {HELD_OUT.headline}" in text
  assert {"table.md", "curves.png"} <= {p.name for p in (written / "experiment").iterdir()}


# What is refused, before anything is trained


def refused(config, directory):
  with pytest.raises(InputError) as error:
    make(config, directory)
  assert not (directory / "stages").exists()
  return str(error.value)


def labelled(label):
  def change(world):
    world.log["split"] = label
    world.schema["split"] = "split"

  return change


def without_rewards(world):
  world.log["reward"] = 0


def nothing(world):
  pass


REFUSED = {
  "no train": (labelled("test"), {}, "train and validation have no rows, of 60"),
  "no test": (labelled("train"), {}, "validation and test have no rows, of 60"),
  "shares": (nothing, {"test_share": 0.95}, "shares must be >= 0 and leave rows to train on"),
  "tiny share": (nothing, {"test_share": 0.001}, "test has no rows, of 60; change the shares"),
  "split": (nothing, {"split": "column"}, "split by column: the log has none"),
  "no rewards": (without_rewards, {}, "none of the 48 training rows has a reward above 0"),
  "no file": (nothing, {"log": "nowhere.csv"}, "nowhere.csv"),
  "no schema": (nothing, {"schema": "nowhere.yaml"}, "nowhere.yaml: the schema cannot be read"),
  "no ranker": (nothing, {"ranker": "nowhere"}, "ranker nowhere: there is no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, case):
  change, settings_changed, message = REFUSED[case]
  world = user_logs.make(60)
  change(world)
  assert message in refused(settings(world.write(tmp_path), **settings_changed), tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"slate_size": 26}, "slate_size is 26, but the catalogue has 25 items"),
    ({"simulation": SimulationConfig(log_number=1)}, "a log of your own is the only one"),
    ({"data": DataConfig(dataset="movielens_1m")}, "are two data sets; leave one out"),
    ({"data": DataConfig(environment="ready")}, "environment ready is not used"),
    ({"data": DataConfig(data_dir="files")}, "data_dir files is not used"),
    ({"user_log": UserLogConfig()}, "dataset user_log needs a log"),
  ],
)
def test_settings_that_contradict_a_log_are_refused(tmp_path, changes, message):
  config = settings(user_logs.make(60).write(tmp_path))
  assert message in refused(dataclasses.replace(config, **changes), tmp_path)


def test_a_log_makes_itself_the_data(tmp_path):
  config = settings(user_logs.make(300).write(tmp_path))
  default = dataclasses.replace(config, data=DataConfig())
  assert make(default, tmp_path).name.startswith("user-log-")
