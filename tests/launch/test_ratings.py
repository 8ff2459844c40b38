"""Commands on ratings: from files in the layouts of others to an export, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from tests import commands
from tests.data.sets import mini_movielens, ratings_layouts

USERS = 25
SHORT = (
  "--dataset=ratings",
  "--epochs=1",
  "--ranker_epochs=1",
  "--batch_size=512",
  "--ranker_batch_size=4096",
)


@pytest.fixture(scope="module")
def rows(test_data, tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "ml-1m"
  return ratings_layouts.rows_of(mini_movielens.first_users(test_data / "ml-1m", directory, USERS))


@pytest.mark.parametrize("layout", [ratings_layouts.ml_100k, ratings_layouts.recbole])
def test_one_command_goes_from_files_to_an_export(layout, rows, tmp_path):
  files = tmp_path / "files"
  files.mkdir()
  layout(files, rows)
  given = (*SHORT, f"--data_dir={files}", f"--workdir={tmp_path / 'run'}")
  export = layout is ratings_layouts.ml_100k
  done = commands.run(*given, f"--export_dir={tmp_path / 'export'}", export=export)
  assert done.returncode == 0, done.stderr
  assert "using --flagfile=ratings" in done.stderr
  assert "not what recommendations would earn" in done.stdout
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert metrics["loss"] == "cross_entropy"
  assert sum(metrics["rows"].values()) == len(rows[2])
  assert 0 < metrics["baselines"]["popularity"]["test"]["one_stage"]["ndcg@10"] < 1
  if export:
    assert (tmp_path / "export" / "1" / "saved_model.pb").exists()
    assert f"Next: python -m launch.serve_check --model={tmp_path / 'export' / '1'}" in done.stdout
  else:
    refused = commands.run(*given, name="evaluate")
    assert refused.returncode == 2
    assert "ratings or orders: what users chose" in refused.stderr


def test_named_files_of_orders_train(tmp_path):
  rng = np.random.default_rng(0)
  orders = pd.DataFrame({"who": rng.integers(30, size=600), "what": rng.integers(20, size=600)})
  orders.to_csv(tmp_path / "sales.csv", index=False)
  (tmp_path / "schema.yaml").write_text("user_id: who\nitem_id: what\nreward: null\n")
  done = commands.run(
    *SHORT,
    f"--log={tmp_path / 'sales.csv'}",
    f"--schema={tmp_path / 'schema.yaml'}",
    f"--workdir={tmp_path / 'run'}",
    f"--export_dir={tmp_path / 'export'}",
    export=False,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]["train"] == 420


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    ("train", (), "set data_dir to their directory, or log"),
    ("train", ("--data_dir=/none",), "/none: no such directory"),
    ("experiment", ("--data_dir=/none", "--logs=2"), "your own log is one sample"),
    ("loop", ("--data_dir=/none", "--rounds=1"), "/none: no such directory"),
  ],
)
def test_what_ratings_cannot_do_is_refused(name, arguments, message, tmp_path):
  done = commands.run("--dataset=ratings", *arguments, f"--workdir={tmp_path}", name=name)
  assert done.returncode == 2
  assert message in done.stderr


def test_a_schema_without_rewards_is_one_of_orders_alone(tmp_path):
  (tmp_path / "schema.yaml").write_text("reward: null\n")
  (tmp_path / "log.csv").write_text("user_id,item_id\n1,1\n")
  done = commands.run(
    f"--log={tmp_path / 'log.csv'}", f"--schema={tmp_path / 'schema.yaml'}", name="validate_log"
  )
  assert done.returncode == 2
  assert "reward: every log needs it" in done.stderr
