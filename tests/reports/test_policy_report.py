"""What is printed and drawn of many policies."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import ESTIMATORS, TargetPolicy
from tf_twostage.reports import policy_plots, policy_report

USERS, ITEMS, ROWS = 40, 5, 800
KINDS = ("generator alone", "generator + ranker")


@pytest.fixture(scope="module")
def evaluation():
  """Shown uniformly; item a is rewarded with probability a / 5."""
  rng = np.random.default_rng(0)
  chance = np.arange(ITEMS) / ITEMS
  actions = rng.integers(ITEMS, size=ROWS).astype(np.int32)
  rewards = (rng.random(ROWS) < chance[actions]).astype(np.float32)
  log = LogRows(
    np.arange(ROWS, dtype=np.int32) % USERS, actions, np.full(ROWS, 1 / ITEMS, np.float32), rewards
  )
  return EvaluationLog(
    log,
    ITEMS,
    "log",
    ("A note.",),
    expected_rewards=lambda rows: np.tile(chance, (len(rows), 1)),
    logging_probabilities=lambda rows: np.full((len(rows), ITEMS), 1 / ITEMS),
  )


@pytest.fixture(scope="module")
def valuations(evaluation):
  """Four policies of each kind, the later the better."""

  def policy(sharpness, kind):
    odds = np.exp(sharpness * np.arange(ITEMS))
    return TargetPolicy(
      f"sharp {sharpness}", kind, lambda rows: np.tile(odds / odds.sum(), (len(rows), 1))
    )

  return [
    values.logging_policy(evaluation, seed=0),
    *(
      values.evaluate(
        policy(sharpness, kind), evaluation, lambda rows: np.full((len(rows), ITEMS), 0.4), seed=0
      )
      for kind in KINDS
      for sharpness in (0.0, 0.5, 1.0, 2.0)
    ),
  ]


@pytest.fixture(scope="module")
def written(valuations, evaluation, tmp_path_factory):
  directory = tmp_path_factory.mktemp("report")
  return policy_report.write(valuations, evaluation, -0.001, directory), directory


def test_many_policies_get_a_line_each_and_an_agreement(written):
  text, _ = written
  lines = text.splitlines()
  for kind in KINDS:
    start = lines.index(kind.capitalize())
    assert lines[start + 1].split() == [*ESTIMATORS, "ess", "true"]
    assert [line.split()[1] for line in lines[start + 2 : start + 6]] == [
      "0.0",
      "0.5",
      "1.0",
      "2.0",
    ]
  assert "Estimates against true values" in text
  assert "A note." in lines
  assert "The reward model explains 0% of the variance of rewards it has not seen." in lines


def test_estimates_that_the_log_does_not_bear_are_marked(valuations, evaluation, tmp_path):
  weak = dataclasses.replace(
    valuations[1].estimates[1], warnings=("the effective sample size is 2",)
  )
  marked = dataclasses.replace(valuations[1], estimates=(*valuations[1].estimates[:1], weak))
  frame = values.to_frame([marked])
  assert list(frame["thin"]) == [False, True]  # that dm is the model's word is no want of log
  many = [
    valuations[0],
    dataclasses.replace(
      marked, estimates=(marked.estimates[0], weak, *valuations[1].estimates[2:])
    ),
    *valuations[2:],
  ]
  text = policy_report.write(many, evaluation, 0.0, tmp_path)
  assert text.count(" !") == 1 + 1  # and what it means


def test_the_files_say_the_same(written, valuations):
  _, directory = written
  frame = pd.read_csv(directory / "estimates.csv")
  stored = json.loads((directory / "estimates.json").read_text())
  assert len(frame) == len(stored["estimates"]) == 1 + 8 * len(ESTIMATORS)
  for row, entry in zip(frame.itertuples(), stored["estimates"], strict=True):
    assert row.value == pytest.approx(entry["value"], rel=1e-6)
    assert row.truth == pytest.approx(entry["truth"], rel=1e-6)
  table = pd.read_csv(directory / "agreement.csv")
  assert list(table["kind"]) == [kind for kind in KINDS for _ in ESTIMATORS]
  assert [row["kendall"] for row in stored["agreement"]] == pytest.approx(list(table["kendall"]))
  of_ips = table[table["estimator"] == "ips"]
  assert (of_ips["kendall"] == 1).all()
  assert (of_ips["regret"] == 0).all()
  assert (of_ips["in_bootstrap"] >= 3).all()


def test_the_picture_is_drawn(written):
  height, width, _ = image.imread(written[1] / "estimates.png").shape
  assert width > 1500
  assert height > 800


@pytest.mark.parametrize("known", [True, False])
def test_the_legend_has_a_true_value_where_one_is_known(valuations, tmp_path, monkeypatch, known):
  frame = values.to_frame(valuations)
  if not known:
    frame["truth"] = np.nan
  names = []

  def save(pictures):
    for width, height, panels in pictures.values():
      figure = Figure(figsize=(width, height))
      panels(figure)
      names.extend(text.get_text() for text in figure.legends[0].get_texts())

  monkeypatch.setattr(policy_plots.drawing, "save", save)
  policy_plots.draw(frame, tmp_path / "estimates.png")
  assert ("true value" in names) == known
  assert set(ESTIMATORS) < set(names)


def test_rare_rewards_are_printed_to_two_digits_of_their_error(valuations, evaluation, tmp_path):
  rare = dataclasses.replace(valuations[0].estimates[0], value=0.003812, standard_error=0.000218)
  first = dataclasses.replace(valuations[0], estimates=(rare,), truth=0.0039)
  text = policy_report.write([first, valuations[1]], evaluation, 0.0, tmp_path)
  assert "earned 0.00381 ± 0.00022 (true value 0.00390)" in text
