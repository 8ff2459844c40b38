"""Logs of several policies: their propensities are those of the mixture."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tf_twostage import TwoStageRecommender, balanced_propensities
from tf_twostage.config import Config, FitConfig, GeneratorConfig, UserLogConfig
from tf_twostage.data.files.bad_rows import BadRowsError
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.environment.streaming import stream_log
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

ITEMS = 4
POLICIES = {"old": np.array([0.7, 0.3, 0.0, 0.0]), "new": np.array([0.1, 0.2, 0.3, 0.4])}
COLUMNS = {"user": "user", "item": "item", "reward": "click"}
PROPENSITY = {"old": "p_old", "new": "p_new"}
SEVERAL = {**COLUMNS, "policy": "logger", "propensity": PROPENSITY}
SCHEMA = LogSchema(
  user_id="user",
  item_id="item",
  policy="logger",
  propensity=PROPENSITY,
  reward="click",
  position=None,
  time="at",
)


def frame(n=400, seed=0):
  """The old policy logs the first quarter of the rows, then the new one the others."""
  rng = np.random.default_rng(seed)
  logger = np.where(np.arange(n) < n // 4, "old", "new")
  tables = {name: rng.choice(ITEMS, n, p=policy) for name, policy in POLICIES.items()}
  item = np.where(logger == "old", tables["old"], tables["new"])
  return pd.DataFrame(
    {
      "user": rng.integers(5, size=n),
      "item": item,
      "click": rng.binomial(1, 0.2 * (1 + item)),
      "logger": logger,
      "at": np.arange(n),
      **{f"p_{name}": policy[item] for name, policy in POLICIES.items()},
    }
  )


def expected(rows):
  return balanced_propensities(rows["logger"], {"old": rows["p_old"], "new": rows["p_new"]})


def in_files(tmp_path, rows, schema=SCHEMA, **options):
  rows.to_csv(tmp_path / "log.csv", index=False)
  schema.to_file(tmp_path / "schema.yaml")
  return BanditLog.from_files(tmp_path / "log.csv", schema=tmp_path / "schema.yaml", **options)


def test_propensities_are_balanced_in_frames_files_and_shards(tmp_path):
  rows = frame()
  log = in_files(tmp_path, rows)
  np.testing.assert_allclose(log.rows.propensity, expected(rows), rtol=1e-6)
  np.testing.assert_array_equal(np.array(log.policies)[log.policy], rows["logger"])
  memory = BanditLog.from_pandas(rows, time="at", **SEVERAL)
  assert memory.fingerprint() == log.fingerprint()
  convert(tmp_path / "log.csv", tmp_path / "shards", SCHEMA)
  shards = BanditLog.from_files(tmp_path / "shards", schema=tmp_path / "shards" / "schema.yaml")
  assert shards.fingerprint() == log.fingerprint()


def test_the_mixture_is_that_of_the_rows_at_hand():
  rows = frame()
  log = BanditLog.from_pandas(rows, time="at", **SEVERAL)
  train, _, test = log.split("time")
  np.testing.assert_allclose(train.rows.propensity, expected(rows[: len(train)]), rtol=1e-6)
  np.testing.assert_allclose(test.rows.propensity, rows["p_new"][-len(test) :], rtol=1e-6)


def test_weights_have_the_mean_1_over_all_draws():
  target = np.array([0.1, 0.4, 0.4, 0.1])
  everything = pd.DataFrame(
    [
      {"logger": name, "item": item, "rows": rows * policy[item]}
      for (name, policy), rows in zip(POLICIES.items(), (100, 300), strict=True)
      for item in range(ITEMS)
      if policy[item]
    ]
  )
  drawn = everything.loc[everything.index.repeat(everything["rows"].round().astype(int))]
  rows = drawn.assign(
    user=0, click=1, **{f"p_{name}": p[drawn["item"]] for name, p in POLICIES.items()}
  )
  log = BanditLog.from_pandas(rows, **SEVERAL)
  weights = target[rows["item"]] / log.rows.propensity
  assert weights.mean() == pytest.approx(1, rel=1e-6)


def test_estimates_take_the_place_of_balanced_propensities():
  log = BanditLog.from_pandas(frame(), **SEVERAL)
  estimated = log.with_propensities(np.full(len(log), 0.5)).select(slice(0, 10))
  np.testing.assert_array_equal(estimated.rows.propensity, 0.5)


def test_parts_given_to_fit_keep_their_propensities():
  train, validation, _ = BanditLog.from_pandas(frame(), time="at", **SEVERAL).split("time")
  model = TwoStageRecommender(
    slate_size=2, training=GeneratorConfig(epochs=1), ranker_training=FitConfig(epochs=1)
  )
  model.fit(train, validation=validation, progress=False)
  np.testing.assert_array_equal(model.environment.log.propensity, train.rows.propensity)


def test_the_report_counts_rows_by_policy_and_finds_wrong_columns():
  rows = frame(4000)
  report = BanditLog.from_pandas(rows, **SEVERAL).check()
  facts = {fact.name: fact.value for fact in report.facts}
  assert (facts["rows of old"], facts["rows of new"]) == (1000, 3000)
  assert facts["mean weight of old"] == pytest.approx(1, abs=0.1)
  assert not any("mean weight" in finding.text for finding in report.findings)
  wrong = rows.assign(p_old=np.where(rows["logger"] == "old", rows["p_old"], 0.9))
  report = BanditLog.from_pandas(wrong, **SEVERAL).check()
  assert any("policy old has a mean weight of" in finding.text for finding in report.findings)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"logger": "older"}, r"column 'logger' must be one of old, new, .*first.*value 'older'"),
    ({"logger": None}, r"column 'logger' must be one of old, new, .*value ''"),
    ({"p_new": 0.0}, r"column 'p_new' must lie in \[0, 1\], above 0 where its policy logged"),
    ({"p_old": -0.1}, r"column 'p_old' must lie in \[0, 1\]"),
    ({"p_old": 1.5}, r"column 'p_old' must lie in \[0, 1\]"),
    ({"p_old": np.nan}, "column 'p_old' must hold numbers"),
  ],
)
def test_bad_rows_are_named_and_can_be_left_out(tmp_path, change, message):
  rows = frame()
  rows.loc[350, list(change)] = [*change.values()]
  with pytest.raises(BadRowsError, match=message):
    in_files(tmp_path, rows)
  log = in_files(tmp_path, rows, on_bad_rows="skip")
  np.testing.assert_allclose(log.rows.propensity, expected(rows.drop(350)), rtol=1e-6)


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    ({"policy": None}, "needs `policy: COLUMN`, which policy logged a row"),
    ({"propensity": {"new": "p_new"}}, "a mapping is for several policies"),
    ({"propensity": {0: "p_old", 1: "p_new"}}, "must be text, got 0; quote it"),
    ({"propensity": {"old": "p_old", "new": 1}}, "column names must be text"),
    ({"propensity": {"old": "p_old", "new": "p_old"}}, "'p_old' has two roles"),
    ({"propensity": {"old": "p_old", "new": "gone"}}, "no column 'gone'"),
    ({"propensity": {**PROPENSITY, "next": "at"}}, "no row of policy 'next'"),
  ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
  with pytest.raises(InputError, match=message):
    BanditLog.from_pandas(frame().assign(at=0.5), **SEVERAL | columns)


@pytest.mark.parametrize("name", ["schema.yaml", "schema.json"])
def test_a_schema_survives_its_file(tmp_path, name):
  SCHEMA.to_file(tmp_path / name)
  assert LogSchema.from_file(tmp_path / name) == SCHEMA


def test_a_streamed_log_is_refused_with_the_way_out(tmp_path):
  in_files(tmp_path, frame())
  files = {"log": str(tmp_path / "log.csv"), "schema": str(tmp_path / "schema.yaml")}
  config = dataclasses.replace(Config(), user_log=UserLogConfig(**files, stream=True))
  with pytest.raises(InputError, match="leave `stream` out, or write one column"):
    stream_log(config, Workspace(tmp_path / "work"))
