"""Items that come and go, and candidates that were logged: from frames and files to answers."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from tests import user_logs
from tests.serving import small
from tf_twostage import BanditLog, TwoStageRecommender, estimate_propensities, evaluate
from tf_twostage.config import FitConfig, GeneratorConfig, SupportConfig
from tf_twostage.data import draft
from tf_twostage.data.files.shards import convert
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.rows import joined
from tf_twostage.errors import InputError
from tf_twostage.evaluation.evaluation_log import EvaluationLog

ROWS, ITEMS = 600, user_logs.ITEMS
START = 1_600_000_000
END = START + 60 * ROWS
NEW, OLD = 20, 5  # items from this one on come in the middle; items before this one go then
MIDDLE = START + 30 * ROWS
ROLES = {
  "user": "user_id",
  "item": "item_id",
  "reward": "reward",
  "propensity": "propensity",
  "time": "time",
}


def world():
  """A log that shows new items in its second half, old ones in its first, as their times say."""
  made = user_logs.make(ROWS)
  index = made.log["item_id"].str[1:].astype(int)
  user = made.log["user_id"].str[1:].astype(int)
  late = made.log["time"] >= MIDDLE
  possible = np.where(late, index >= OLD, index < NEW)
  mass = np.where(
    late, made.logging[:, OLD:].sum(axis=1)[user], made.logging[:, :NEW].sum(axis=1)[user]
  )
  made.log["propensity"] /= mass  # what is left shares the probability
  made.log = made.log[possible].reset_index(drop=True)
  number = np.arange(ITEMS)
  made.items["start"] = np.where(number >= NEW, MIDDLE, np.nan)
  made.items["stop"] = np.where(number < OLD, MIDDLE, np.nan)
  return made


def log_of(made, **options):
  roles = {**ROLES, "available_from": "start", "available_to": "stop", **options}
  return BanditLog.from_pandas(made.log, items=made.items, users=made.users, **roles)


@pytest.fixture(scope="module")
def log():
  return log_of(world())


@pytest.fixture(scope="module")
def model(log):
  training = GeneratorConfig(epochs=1, batch_size=64)
  made = TwoStageRecommender(
    "ips", slate_size=5, training=training, ranker_training=FitConfig(epochs=1, batch_size=64)
  )
  return made.fit(log, progress=False)


def expected(log):
  """Which items there are in each row, from the times of the made-up world."""
  number, late = np.arange(ITEMS), (log.time >= MIDDLE)[:, np.newaxis]
  return np.where(late, number >= OLD, number < NEW)


def test_a_row_could_show_the_items_of_its_time(log):
  np.testing.assert_array_equal(log.rows.available(np.arange(len(log))), expected(log))
  part = log.select(slice(200, 300))
  np.testing.assert_array_equal(part.rows.available(np.arange(100)), expected(part))


def test_times_may_be_dates_and_come_from_files(log, tmp_path):
  made = world()
  made.log["time"] = pd.to_datetime(made.log["time"], unit="s").map(lambda t: t.isoformat())
  for name in ("start", "stop"):
    dates = pd.to_datetime(made.items[name], unit="s")
    made.items[name] = dates.dt.strftime("%Y-%m-%dT%H:%M:%S")
  made.schema |= {"available_from": "start", "available_to": "stop"}
  made.write(tmp_path)
  files = {name: tmp_path / f"{name}.csv" for name in ("items", "users")}
  again = BanditLog.from_files(tmp_path / "log.csv", schema=tmp_path / "schema.yaml", **files)
  rows = np.arange(len(log))
  np.testing.assert_array_equal(again.rows.available(rows), log.rows.available(rows))


def test_a_report_counts_what_rows_could_show(log):
  report = log.check()
  facts = {fact.name: fact for fact in report.facts}
  assert facts["items that a row could show"].value == NEW
  assert facts["mean of 1/propensity"].value == pytest.approx(NEW, rel=0.1)
  assert not any("items there are" in str(finding) for finding in report.findings)


def test_a_draft_proposes_the_columns(tmp_path):
  made = world()
  made.log["pool"] = made.log["item_id"] + "|i7"
  names = {"start": "available_from", "stop": "Valid Until"}
  made.items = made.items.rename(columns=names)
  made.write(tmp_path)
  text = draft.draft(tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "users.csv")
  proposed = re.findall(r"^# (candidates|available_\w+): (.*?)  +#", text, re.MULTILINE)
  assert proposed == [
    ("candidates", "pool"),
    ("available_from", "available_from"),
    ("available_to", "Valid Until"),
  ]
  uncommented = re.sub(r"^# (candidates|available_)", r"\1", text, flags=re.MULTILINE)
  files = {name: tmp_path / f"{name}.csv" for name in ("items", "users")}
  schema = LogSchema.from_dict(yaml.safe_load(uncommented))
  again = BanditLog.from_files(tmp_path / "log.csv", schema=schema, **files)
  assert again.rows.choices(ITEMS).max() == 2


def test_candidates_are_converted_with_the_log(log, tmp_path):
  made = world()
  made.log["pool"] = made.log["item_id"] + "|i7"
  made.schema |= {"available_from": "start", "available_to": "stop", "candidates": "pool"}
  made.write(tmp_path)
  schema = tmp_path / "schema.yaml"
  convert(tmp_path / "log.csv", tmp_path / "native", schema, num_shards=1, user_features=False)
  files = {name: tmp_path / f"{name}.csv" for name in ("items", "users")}
  schema = tmp_path / "native" / "schema.yaml"
  again = BanditLog.from_files(tmp_path / "native", schema=schema, **files)
  candidates = np.arange(ITEMS) == log.rows.action[:, np.newaxis]
  candidates[:, 7] = True
  found = again.rows.available(np.arange(len(log)))
  np.testing.assert_array_equal(found, candidates & expected(log))


@pytest.mark.parametrize("cells", [list, "|".join])
def test_a_row_could_show_its_candidates(cells):
  made = world()
  rng = np.random.default_rng(0)
  lists = [[item, *rng.choice(made.items["item_id"], 3)] for item in made.log["item_id"]]
  made.log["pool"] = [cells(items) for items in lists]
  log = log_of(made, candidates="pool")
  among = np.array([[item in items for item in made.items["item_id"]] for items in lists])
  np.testing.assert_array_equal(log.rows.available(np.arange(len(log))), among & expected(log))
  np.testing.assert_array_equal(log.rows.choices(ITEMS), (among & expected(log)).sum(axis=1))
  alone = BanditLog.from_pandas(made.log, **ROLES, candidates="pool")
  ids = alone.schema.item_id.vocabulary
  among = np.array([[item in items for item in ids] for items in lists])
  np.testing.assert_array_equal(alone.rows.available(np.arange(len(log))), among)


def test_batches_say_what_each_row_could_show(log):
  tables = {"user_id": np.arange(log.num_users)}
  batch = next(iter(log.rows.batches(tables, batch_size=32, seed=0)))
  assert batch["available"].shape == (32, ITEMS)
  assert batch["available"].numpy()[np.arange(32), batch["action"]].all()
  assert not batch["available"].numpy().all()


def test_a_row_that_shows_an_item_before_it_came_is_bad():
  made = world()
  made.log.loc[3, "item_id"] = f"i{NEW}"
  with pytest.raises(InputError, match=r"column 'time' must be a time at which .*row 3"):
    log_of(made)
  assert len(log_of(made, on_bad_rows="skip")) == len(made.log) - 1
  for table, columns in ((made.log, ["time"]), (made.items, ["start", "stop"])):
    table[columns] = table[columns].apply(pd.to_datetime, unit="s")
  date = str(made.log["time"][3])
  with pytest.raises(InputError, match=rf"'time' must be a time at which .*value '{date}'"):
    log_of(made)


def test_items_that_go_before_they_come_are_refused():
  made = world()
  made.items.loc[7, ["start", "stop"]] = [MIDDLE, START]
  with pytest.raises(InputError, match=r"'start' must be a time before .* 'stop'; 1 of .*row 7"):
    log_of(made)


@pytest.mark.parametrize("dates", ["log", "items"])
def test_dates_and_numbers_as_times_are_refused_with_both(dates):
  made = world()
  if dates == "log":
    made.log["time"] = pd.to_datetime(made.log["time"], unit="s")
    wanted = f"'start' holds numbers such as '{MIDDLE}.*'time' holds dates such as '2020-09-13 12"
  else:
    made.items["start"] = pd.to_datetime(made.items["start"], unit="s").astype(str)
    wanted = f"'start' holds dates such as '2020-09.*'time' holds numbers such as '{START}"
  made.items.loc[0, "start"] = None
  with pytest.raises(InputError, match=f"items: column {wanted}"):
    log_of(made, available_to=None)


def test_a_row_whose_item_is_no_candidate_is_bad():
  made = world()
  made.log["pool"] = [[item, "i7"] for item in made.log["item_id"]]
  made.log.at[4, "pool"] = ["x"]
  with pytest.raises(InputError, match=r"must list the row's item .*row 4, value .*'x'"):
    log_of(made, candidates="pool")


@pytest.mark.parametrize(
  ("cell", "rule"),
  [
    ("", "must list items"),
    ("{}|zzz", r'must list known items, separated by "\|": unknown item, not in items'),
    ("{},i7", r"must list the row's item among the candidates, separated by \"\|\""),
  ],
)
def test_candidates_that_cannot_be_read_are_bad_with_the_reason(cell, rule):
  made = world()
  made.log["pool"] = made.log["item_id"] + " | i7|"
  assert log_of(made, candidates="pool").rows.choices(ITEMS).max() == 2
  made.log.loc[4, "pool"] = cell.format(made.log["item_id"][4])
  with pytest.raises(InputError, match=rf"column 'pool' {rule}.* 1 of .*row 4") as raised:
    log_of(made, candidates="pool")
  assert "\n" not in str(raised.value)  # one fault


def test_intervals_need_times_and_an_items_file():
  made = world()
  with pytest.raises(InputError, match=r"available_from: .* name the column as `time`"):
    log_of(made, time=None)
  with pytest.raises(InputError, match="times at which items come and go, which are columns"):
    BanditLog.from_pandas(made.log, **ROLES, available_from="start")


def test_logs_with_different_sets_of_items_are_not_joined(log):
  with pytest.raises(InputError, match="make one BanditLog of all rows and split it"):
    joined([log.rows, log_of(world()).rows])


def test_training_normalises_over_what_there_was(model, log):
  """The cross-entropy of a softmax over the available items, also over a sampled support."""
  tables = model.environment.tables
  batch = next(iter(log.rows.batches(tables.users, batch_size=32, seed=0)))
  for size in (0, 4096):  # a support of that size has every item
    made = TwoStageRecommender("cross_entropy", support=SupportConfig(support_size=size))
    generator = made.fresh_generator(model.environment)
    generator.compile(optimizer="sgd")
    loss, _ = generator._loss_and_penalty(batch, training=False)
    logits = np.where(batch["available"], generator.towers(batch["user"]), -np.inf)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    logged = log_p[np.arange(32), batch["action"]]
    assert float(loss) == pytest.approx(np.mean(-batch["reward"] * logged), rel=1e-3)


def test_estimated_propensities_are_shares_of_what_there_was():
  """Σ_a q(a) / p(a) is the number of items that there are, if p is the true q."""
  made = world()
  options = {**ROLES, "propensity": None, "available_from": "start", "available_to": "stop"}
  unknown = BanditLog.from_pandas(made.log, items=made.items, **options)
  estimated = estimate_propensities(unknown, training=FitConfig(epochs=1))
  assert np.mean(1 / estimated.rows.propensity) == pytest.approx(NEW, rel=0.1)


def test_policies_give_nothing_to_items_that_were_not_there(model, log):
  rows = np.arange(0, len(log), 7)
  for policy in (model.policy("one_stage"), model.policy(), model.policy("served", length=3)):
    probabilities = np.asarray(policy.on(log).probabilities(rows))
    assert not probabilities[~expected(log)[rows]].any()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)


def test_a_fixed_policy_is_evaluated_on_what_was_there(log):
  """Its weights are those of the policy restricted to the items of each time."""
  uniform = np.full(ITEMS, 1 / ITEMS)
  found = evaluate(log, {"uniform": uniform}, ["ips"], progress=False).to_frame()
  weights = 1 / expected(log).sum(axis=1) / log.rows.propensity
  value = found.set_index("estimator").loc["ips", "value"]
  assert value == pytest.approx(np.mean(weights * log.rows.reward), rel=1e-5)
  assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / np.sqrt(len(log)))


def test_contexts_with_different_items_are_different(log):
  same = dataclasses.replace(log.rows, user_index=np.zeros_like(log.rows.user_index))
  first, _ = EvaluationLog(same, ITEMS, "log").distinct_contexts
  assert len(first) == 2


def test_recommendations_are_of_the_items_that_there_are(model, tmp_path):
  everything = {f"i{i}" for i in range(ITEMS)}
  late, early = ({f"i{i}" for i in chosen} for chosen in (range(OLD, ITEMS), range(NEW)))
  export = tmp_path / "shop"
  with pytest.MonkeyPatch.context() as patch:
    small.skip_replay(patch.setattr)
    model.export(export)
  for one in (model, TwoStageRecommender.load(export)):
    assert {*one.recommend(["u1"], k=ITEMS)["item"]} == late  # as at the newest time
    times = pd.DataFrame({"user_id": ["u1", "u2"], "time": [START, MIDDLE]})
    shown = one.recommend(times, k=ITEMS).groupby("user")["item"].agg(set)
    assert (shown["u1"], shown["u2"]) == (early, late)
    dates = times.assign(time=pd.to_datetime(times["time"], unit="s"))
    assert {*one.recommend(dates, k=ITEMS)["item"]} == everything
  with pytest.raises(InputError, match="column 'time' must hold times"):
    one.recommend(times.assign(time=[START, np.inf]))
