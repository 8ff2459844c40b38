"""Short commands on the first users of MovieLens-1M: training, and the loop on its stages."""

import json
import re
import shutil

import numpy as np
import pytest

from tests import commands
from tests.data.sets import mini_movielens

USERS, MOVIES_LOGGED = 500, 12  # by each user
# The log is of a weak policy: much is left to learn.
SHORT = (
  "--flagfile=launch/ml1m.flags",
  "--validation_users=150",
  "--simulator_epochs=2",
  "--behavior_epochs=2",
  "--behavior_batch_size=512",
  f"--items_per_user={MOVIES_LOGGED}",
  "--ranker_epochs=1",
  "--ranker_batch_size=512",
  "--ranker_learning_rate=0.05",
  "--epochs=1",
  "--batch_size=512",
)
ROUNDS = 2


@pytest.fixture(scope="module")
def files(test_data, tmp_path_factory):
  return mini_movielens.first_users(
    test_data / "ml-1m", tmp_path_factory.mktemp("data") / "ml-1m", USERS
  )


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
  """Where a short run worked."""
  root = tmp_path_factory.mktemp("trained")
  done = commands.run(
    *SHORT,
    f"--data_dir={files}",
    "--num_slates=2",
    f"--workdir={root / 'run'}",
    f"--export_dir={root / 'export'}",
    export=False,
  )
  assert done.returncode == 0, done.stderr
  return root


def test_a_directory_trains(trained):
  metrics = json.loads((trained / "run" / "metrics.json").read_text())
  assert metrics["simulator_auc"] > 0.7
  two_stage, random = (
    m["test"]["two_stage"]["precision@10"] for m in (metrics, metrics["baselines"]["random"])
  )
  assert np.isfinite(two_stage)
  assert two_stage > random


@pytest.fixture(scope="module")
def rounds(trained, files, tmp_path_factory):
  """The loop's last table: for each policy, its percentages by column."""
  root = tmp_path_factory.mktemp("loop")
  shutil.copytree(trained / "run" / "stages", root / "run" / "stages")
  done = commands.run(
    *SHORT,
    f"--data_dir={files}",
    "--loss=ips",
    "--policy=two_stage",
    "--item_bias",
    f"--rounds={ROUNDS}",
    f"--draws={MOVIES_LOGGED}",
    f"--workdir={root / 'run'}",
    f"--export_dir={root / 'export'}",
    name="loop",
  )
  assert done.returncode == 0, done.stderr
  assert "full_information: reused" in done.stderr
  assert {path.name for path in (root / "export").glob("[0-9]*")} == {"1", "2"}
  first, *others = done.stdout.splitlines()[-1 - ROUNDS :]
  number = r"([\d.,]+)"
  estimate = rf" +{number} \[{number}, {number}\] +{number}"
  logged = rf" +{number} ± {number}"
  rows = [re.fullmatch(rf" *round \d +{number}{estimate} +{number}{logged}", row) for row in others]
  logging_policy = re.fullmatch(rf" *logging policy{logged}", first)
  return [
    [float(text.replace(",", "")) for text in row.groups()] for row in (logging_policy, *rows)
  ]


def test_round_after_round_the_true_value_rises(rounds):
  (start, _), *policies = rounds
  truths = [start, *(policy[5] for policy in policies)]
  assert len(truths) == 1 + ROUNDS
  # By how much depends on the processor: its rounding leads to other draws.
  assert np.all(np.diff(truths) > 0)
  assert truths[-1] > start + 25


def test_every_estimate_beside_the_truth_is_near_it(rounds):
  for trained_on, value, low, high, worth, truth, logged, error in rounds[1:]:
    assert low < value < high
    standard_error = (high - low) / 2 / 1.96
    assert abs(value - truth) < 4 * standard_error
    assert standard_error < 6
    assert worth > 50
    assert abs(logged - truth) < 4 * error
    assert trained_on >= USERS * MOVIES_LOGGED
