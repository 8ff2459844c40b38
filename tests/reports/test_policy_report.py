"""What is printed and drawn of many policies."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from tf_twostage.data.rows import LogRows
from tf_twostage.evaluation import values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import REPORTED, TargetPolicy
from tf_twostage.reports import plots
from tf_twostage.reports.policy_report import Evaluation

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
def estimates(evaluation):
  """Four policies of each kind, the later the better."""

  def policy(sharpness, kind):
    odds = np.exp(sharpness * np.arange(ITEMS))
    return TargetPolicy(
      f"sharp {sharpness}", kind, lambda rows: np.tile(odds / odds.sum(), (len(rows), 1))
    )

  policies = [policy(s, kind) for kind in KINDS for s in (0.0, 0.5, 1.0, 2.0)]
  return values.evaluate(
    evaluation, policies, reward_model=lambda rows: np.full((len(rows), ITEMS), 0.4)
  )


@pytest.fixture(scope="module")
def written(estimates, evaluation, tmp_path_factory):
  directory = tmp_path_factory.mktemp("report")
  return Evaluation(evaluation, estimates, -0.001).save(directory), directory


def test_many_policies_get_a_line_each_and_an_agreement(written):
  text, _ = written
  lines = text.splitlines()
  for kind in KINDS:
    start = lines.index(kind.capitalize())
    assert lines[start + 1].split() == [*REPORTED, "ess", "true"]
    assert [line.split()[1] for line in lines[start + 2 : start + 6]] == [
      "0.0",
      "0.5",
      "1.0",
      "2.0",
    ]
  assert "Estimates against true values" in text
  assert "A note." in lines
  assert "The reward model explains 0% of the variance of rewards it has not seen." in lines


def test_a_reward_model_below_the_mean_explains_nothing(estimates, evaluation):
  text = str(Evaluation(evaluation, estimates, -0.09))
  assert "worse than their mean does (R² = -0.09)." in text
  assert "explains" not in text


def test_pairs_of_few_policies_are_compared(evaluation, tmp_path):
  policies = [
    TargetPolicy(f"item {item}", KINDS[1], lambda rows, i=item: np.eye(ITEMS)[[i] * len(rows)])
    for item in (1, 4)
  ]
  frame = values.evaluate(
    evaluation,
    policies,
    ["snips", "dr"],
    reward_model=lambda rows: np.full((len(rows), ITEMS), 0.4),
  )
  found = Evaluation(evaluation, frame)
  text = found.save(tmp_path)
  assert "Differences by dr, paired" in text
  assert f"item 1, {KINDS[1]} - item 4, {KINDS[1]}" in text
  stored = pd.read_csv(tmp_path / "differences.csv").set_index("estimator")
  assert stored.loc["dr", "low"] < -0.6 < stored.loc["dr", "high"] < 0  # 1 / 5 - 4 / 5
  assert list(found.select()["policy"]) == ["item 4", "item 1"]
  assert "influence" not in found.to_frame()


def test_unreliable_estimates_are_marked(estimates, evaluation):
  # One row of 800 is never enough, and dm's reliance on the model is no lack of rows.
  assert not estimates["unreliable"].any()
  marked = estimates.copy()
  marked.loc[3, "unreliable"] = True
  text = str(Evaluation(evaluation, marked))
  assert text.count(" !") == 1 + 1  # and its explanation
  assert "! unreliable (reasons" in text


def test_few_policies_get_all_columns_and_their_warnings(evaluation):
  first = TargetPolicy("first", "kind", lambda rows: np.eye(ITEMS)[[0] * len(rows)])
  text = str(Evaluation(evaluation, values.evaluate(evaluation, [first], ["ips", "snips"])))
  assert "first, kind (true value 0.000)" in text
  assert "largest weight" in text
  assert "! ips, snips: the rewards are those of 0.0 effective groups of 40" in text
  assert "reward model" not in text


def test_the_files_agree(written):
  _, directory = written
  frame = pd.read_csv(directory / "estimates.csv")
  stored = json.loads((directory / "estimates.json").read_text())
  assert len(frame) == len(stored["estimates"]) == 1 + 8 * len(REPORTED)
  for row, entry in zip(frame.itertuples(), stored["estimates"], strict=True):
    assert row.value == pytest.approx(entry["value"], rel=1e-6)
    assert row.truth == pytest.approx(entry["truth"], rel=1e-6)
  table = pd.read_csv(directory / "agreement.csv")
  assert list(table["kind"]) == [kind for kind in KINDS for _ in REPORTED]
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
@pytest.mark.parametrize("extra", [0, 4])
def test_plots_take_any_number_of_estimators_and_show_known_truths(estimates, known, extra):
  more = [
    estimates[estimates["estimator"] == "ips"].assign(estimator=f"mine {i}") for i in range(extra)
  ]
  frame = pd.concat([estimates, *more])
  if not known:
    frame["truth"] = np.nan
  figure = plots.policy_values(frame, "mean reward")
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert set(names) == {
    *REPORTED,
    *(f"mine {i}" for i in range(extra)),
    "logging policy",
    *(["true value"] if known else []),
  }
  assert figure._repr_png_().startswith(b"\x89PNG")


def test_an_arrow_marks_each_interval_that_is_longer_than_the_axis(estimates):
  frame = estimates.assign(unreliable=False)
  frame.loc[1, ["bootstrap_interval_high", "unreliable"]] = 1e6, True
  axes = plots.policy_values(frame, "mean reward").axes
  (right,) = {axis.get_xlim()[1] for axis in axes}
  assert right < 1e6
  at = [x for axis in axes for c in axis.collections for x, _ in np.asarray(c.get_offsets())]
  assert at.count(right) == 1


def test_rare_rewards_are_printed_to_two_digits_of_their_error(estimates, evaluation):
  rare = estimates.copy()
  rare.loc[0, ["value", "standard_error", "truth"]] = 0.003812, 0.000218, 0.0039
  text = str(Evaluation(evaluation, rare))
  assert "earned 0.00381 ± 0.00022 (true value 0.00390)" in text
