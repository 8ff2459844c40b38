"""Logs of one's own from the command line."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests import user_logs
from tests.commands import ROOT, run
from tests.launch.test_train import directories
from tf_twostage import TwoStageRecommender
from tf_twostage.errors import InputError

FLAGS = "--flagfile=launch/user_log.flags"
SHORT = ("--epochs=2", "--ranker_epochs=2", "--behavior_epochs=2")


def files(directory):
  return (
    *(f"--{name}={directory / name}.csv" for name in ("log", "items", "users")),
    f"--schema={directory / 'schema.yaml'}",
  )


@pytest.fixture
def open_bandit(test_data):
  directory = test_data / "open-bandit" / "random" / "all"
  if not directory.is_dir():
    pytest.skip(f"{directory} is not there; put the Open Bandit Dataset's small sample there")
  return directory


def test_open_bandit_goes_the_whole_way(open_bandit, tmp_path):
  done = run(
    FLAGS,
    *SHORT,
    f"--log={open_bandit / 'all.csv'}",
    f"--items={open_bandit / 'item_context.csv'}",
    "--schema=open_bandit",
    *directories(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  for words in (
    "Test rows, generator + ranker (mean reward of an item)",
    "logging policy",
    "SNIPS",
    "±",
  ):
    assert words in done.stdout
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert metrics["rows"] == {"train": 7000, "validation": 1500, "test": 1500}
  logging = metrics["baselines"]["logging policy"]["test"]["two_stage"]
  uniform = metrics["baselines"]["random"]["test"]["one_stage"]
  # The log is that of a uniform policy: weights are all 1.
  assert uniform["ips"] == pytest.approx(logging["ips"], rel=1e-4)
  assert uniform["effective_sample_size"] == pytest.approx(1500)
  signature = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["recommend"]
  answer = signature(
    **{f"user_feature_{i}": tf.constant(["new"]) for i in range(4)},
    exclude=tf.constant([[""]]),
    k=tf.constant(10),
  )
  assert answer["item_id"].shape == (1, 10)


def test_kinds_of_events_travel_from_a_file_to_an_export(tmp_path):
  log = user_logs.make(400).log
  log["did"] = np.where(log["reward"] > 0, np.where(log.index % 2, "buy", "view"), "")
  log["did"] = log["did"].where(log.index % 5 > 0, "hide")  # without reward, too
  log.to_csv(tmp_path / "log.csv", index=False)
  past = {"kind": "sequence", "column": "item_id", "events": "did"}
  schema = {"time": "time", "user_features": {"past": past}}
  (tmp_path / "schema.json").write_text(json.dumps(schema))
  own = (f"--log={tmp_path / 'log.csv'}", f"--schema={tmp_path / 'schema.json'}")
  once = ("--epochs=1", "--ranker_epochs=1", "--sequence_encoder=mean")
  done = run(FLAGS, *once, *own, *directories(tmp_path))
  assert done.returncode == 0, done.stderr

  model = TwoStageRecommender.load(tmp_path / "export")
  asked = pd.DataFrame({"user_id": [*"abcd"], "past": [["i1"]] * 4})
  asked["past_events"] = [["view"], ["buy"], ["never"], ["seen"]]
  shown = model.recommend(asked, k=user_logs.ITEMS)
  view, buy, never, seen = shown.pivot(index="user", columns="item", values="score").to_numpy()
  assert (view != buy).any()
  np.testing.assert_array_equal(never, seen)  # both are unknown
  last = log[(log["user_id"] == "u1") & (log["did"] != "")]
  asked = pd.DataFrame({"user_id": ["u1"], "past": [[*last["item_id"]]]})
  asked["past_events"] = [[*last["did"]]]
  pd.testing.assert_frame_equal(model.recommend(["u1"], k=5), model.recommend(asked, k=5))
  with pytest.raises(InputError, match="no column 'past_events'; past, past_events describe"):
    model.recommend(asked.drop(columns="past_events"), k=5)
  asked["past_events"] = [["view"] * 30]
  with pytest.raises(tf.errors.InvalidArgumentError, match="one value for each of past"):
    model.recommend(asked, k=5)


def test_a_log_can_stay_on_disk(tmp_path):
  written = user_logs.make(600).write(tmp_path / "log")
  arguments = (
    FLAGS,
    *SHORT,
    *files(written),
    "--stream",
    "--batch_size=48",
    *directories(tmp_path),
  )
  done = run(*arguments, export=False)
  assert done.returncode == 0, done.stderr
  assert re.search(
    r"generator \d+\.\d s \(\d+\.\d% of its steps' time waiting for batches", done.stdout
  )
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert metrics["rows"] == {"train": 420, "validation": 90, "test": 90}
  assert not metrics["timings"]["streamed_log"]["reused"]
  again = run(*arguments, export=False)
  assert "streamed_log reused" in again.stdout
  (path, *_) = (tmp_path / "run" / "stages").glob("streamed_log-*/rows/rewarded-00*")
  path.write_bytes(path.read_bytes()[:60])
  mended = run(*arguments, "--seed=1", export=False)
  assert mended.returncode == 0, mended.stderr
  assert re.search(rf"{path}.*; it is set aside and built again", mended.stderr)
  assert "streamed_log reused" not in mended.stdout


def test_a_log_of_two_policies_goes_the_whole_way(tmp_path):
  world, rng = user_logs.make(900), np.random.default_rng(1)
  user, item = (world.log[f"{side}_id"].str[1:].astype(int) for side in ("user", "item"))
  by = np.where(user < 40, "old", "new")
  item = np.where(by == "old", item, rng.integers(user_logs.ITEMS, size=len(user)))
  part = rng.choice(["train", "validation", "test"], len(user), p=[0.6, 0.2, 0.2])
  world.log = world.log.assign(
    item_id=np.char.add("i", item.astype(str)),
    reward=rng.binomial(1, world.reward[user, item]),
    by=by,
    p_old=world.logging[user, item],
    p_new=1 / user_logs.ITEMS,
    part=part,
  )
  world.schema |= {"policy": "by", "propensity": {"old": "p_old", "new": "p_new"}, "split": "part"}
  written = files(world.write(tmp_path / "log"))

  report = run(*written, name="validate_log")
  assert report.returncode == 0, report.stderr
  assert re.search(rf"rows of old +{(by == 'old').sum()} ", report.stdout)
  work, export = directories(tmp_path)
  arguments = (FLAGS, *SHORT, "--loss=ips", *written, work)
  done = run(*arguments, export, export=False)
  assert done.returncode == 0, done.stderr
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  tested = world.log[part == "test"]
  share = (tested["by"] == "old").mean()
  mixture = share * tested["p_old"] + (1 - share) * tested["p_new"]
  value = (tested["reward"] / user_logs.ITEMS / mixture).mean()
  random = metrics["baselines"]["random"]["test"]["one_stage"]
  assert random["ips"] == pytest.approx(value, rel=1e-5)
  uniform = world.items.assign(probability=1 / user_logs.ITEMS)
  uniform.to_csv(tmp_path / "uniform.csv", columns=["item_id", "probability"], index=False)
  more = (f"--policy_file={tmp_path / 'uniform.csv'}", "--estimators=ips")
  evaluated = run(*arguments, *more, name="evaluate")
  assert evaluated.returncode == 0, evaluated.stderr
  assert re.search(rf"uniform\.csv.*\n.*\nips +{value:.3f} ", evaluated.stdout), evaluated.stdout


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--ranker=nowhere"], "error: ranker nowhere: there is no such file or directory"),
    (["--test_share=1"], "error: test_share must be below 1"),
  ],
)
def test_wrong_input_is_one_message(tmp_path, flags, message):
  user_logs.make(60).write(tmp_path)
  done = run(FLAGS, *files(tmp_path), *flags, *directories(tmp_path))
  assert done.returncode == 2
  (line,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
  assert line.startswith(message)
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run" / "generators").exists()


def test_the_file_sets_nothing_and_its_flags_are_explained():
  text = (ROOT / "launch" / "user_log.flags").read_text()
  assert not re.findall(r"^-", text, re.MULTILINE)
  shown = run("--help").stdout
  flags = re.findall(r"^# --(\w+)", text, re.MULTILINE)
  assert {"split", "slate_size", "loss", "selection"} <= set(flags)
  assert all(f"--{flag} " in shown for flag in flags)
  assert "A log of your own:" in shown
