"""The summary of a benchmark: what is compared, marked and drawn."""

import numpy as np
import pandas as pd
import pytest

from tests.histories import history, scores
from tf_twostage.reports import benchmark, tables
from tf_twostage.reports.tables import Cell

RNG = np.random.default_rng(0)
LOGS = 8


def outcome(popularity=0.45, **shifts):
  """An experiment on LOGS logs of "reference" and others, better than it by a number each."""
  level = 0.5 + 0.05 * RNG.normal(size=LOGS)
  histories = {
    Cell(name, log, log): history(scores(level[log] + shift + 0.002 * RNG.normal()))
    for log in range(LOGS)
    for name, shift in {"reference": 0.0, **shifts}.items()
  }
  cells = tables.every_cell(histories)
  baselines = {log: {"popularity": scores(popularity + 0.001 * log)} for log in range(LOGS)}
  found = tables.results(cells, baselines)
  tests = tables.paired_tests(found, ["reference", *shifts], ["popularity"])
  return benchmark.Outcome(cells, tests)


def test_an_outcome_is_read_from_the_files_of_an_experiment(tmp_path):
  made = outcome(better=0.1)
  made.cells.to_csv(tmp_path / "table.csv", index=False)
  tests = {"precision@10": made.tests, "recall@10": made.tests.assign(difference=0.0)}
  pd.concat(tests, names=["metric"]).reset_index("metric").to_csv(tmp_path / "significance.csv")
  read = benchmark.Outcome.read(tmp_path)
  np.testing.assert_allclose(read.compared("two_stage")["mean"], made.compared("two_stage")["mean"])
  assert read.repetitions == f"{LOGS} logs"


def test_changes_are_those_of_the_paired_tests():
  made = outcome(better=0.1, worse=-0.1)
  table = made.compared("two_stage")
  score = "test/two_stage/precision@10"
  means = made.cells.groupby("variant")[score].mean()
  for name in ("reference", "better", "worse"):
    expected = 100 * (means[name] / means["reference"] - 1)
    assert table.loc[name, "change"] == pytest.approx(expected)
  per_log = made.cells.pivot(index="log", columns="variant", values=score)
  low, high = tables.ratio_interval(*per_log[["better", "reference"]].to_numpy().T)
  assert table.loc["better", ["low", "high"]].tolist() == pytest.approx(
    [100 * low - 100, 100 * high - 100]
  )


def test_popularity_is_compared_with_the_reference_by_the_inverse_ratio():
  made = outcome(popularity=0.45, better=0.1)
  row = made.compared("two_stage").loc["popularity"]
  popularity = 100 * (0.45 + 0.001 * np.arange(LOGS))
  reference = made.cells[made.cells["variant"] == "reference"].sort_values("log")
  reference = reference["test/two_stage/precision@10"].to_numpy()
  assert row["mean"] == pytest.approx(popularity.mean())
  assert row["change"] == pytest.approx(100 * (popularity.mean() / reference.mean() - 1))
  low, high = tables.ratio_interval(popularity, reference)
  assert row[["low", "high"]].tolist() == pytest.approx([100 * low - 100, 100 * high - 100])
  assert not row["learned"]


def test_an_unbounded_interval_of_popularity_is_not_shown():
  made = outcome(better=0.1)
  made.tests.loc[made.tests["second"] == "popularity", "change_low"] = -120.0
  row = made.compared("two_stage").loc["popularity"]
  assert row[["low", "high"]].isna().all()
  assert np.isfinite(row["change"])
  cell = benchmark.to_markdown({"one": made}).splitlines()[2].split("|")[-2]
  assert cell.strip().endswith("%")


def test_what_nothing_learned_beats_surely_is_marked():
  table = outcome(better=0.1, as_good=0.1001, worse=-0.1).compared("two_stage")
  assert table.index[table["unbeaten"]].tolist() == ["better", "as_good"]


def test_ranks_and_the_distance_to_the_best_are_over_environments():
  made = {"one": outcome(a=0.1, b=0.05), "two": outcome(a=-0.1, b=0.05)}
  lines = benchmark.to_markdown(made).split("\n\n")[1].splitlines()
  cells = {line.split("|")[1].strip(): line for line in lines}
  ranks = cells["mean rank"].split("|")[3:-1]
  assert [float(rank) for rank in ranks if rank.strip()] == [2.5, 2.0, 1.5]
  means = [found.compared("two_stage")["mean"].iloc[:3] for found in made.values()]
  expected = np.max([of_one.max() - of_one.to_numpy() for of_one in means], axis=0)
  below = cells["most below the best, points"].split("|")[3:-1]
  np.testing.assert_allclose([float(b) for b in below if b.strip()], expected, atol=0.051)


def test_environments_may_have_other_objectives():
  text = benchmark.to_markdown({"one": outcome(a=0.1), "two": outcome(b=0.1)})
  assert "| one | 8 logs |" in text
  axis = benchmark.by_environment({"one": outcome(a=0.1), "two": outcome(b=0.1)}).axes[0]
  assert len(axis.texts) == 6  # "one" has no b, "two" no a


def test_the_figure_shows_every_score_and_how_far_it_is_below_the_best():
  made = {"one": outcome(worse=-0.1, better=0.05), "two": outcome(worse=-0.1, better=0.05)}
  axis = benchmark.by_environment(made).axes[0]
  columns = [label.get_text() for label in axis.get_xticklabels()]
  assert columns == ["better", "reference", "popularity", "worse"]
  assert axis.get_yticklabels()[0].get_text() == f"one ({LOGS} logs)"
  means = [found.compared("two_stage").loc[columns, "mean"] for found in made.values()]
  shown = [text.get_text() for text in axis.texts]
  assert shown == [f"{mean:.1f}" for of_one in means for mean in of_one]
  below = [of_one.max() - of_one for of_one in means]
  np.testing.assert_allclose(axis.images[0].get_array(), below)
  assert [text.get_weight() for text in axis.texts[:4]] == ["bold", "normal", "normal", "normal"]
