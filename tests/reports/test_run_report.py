"""A run's table, timings and warnings."""

import math

import pytest

from tests.histories import scores
from tf_twostage.reports import run_report


def test_table_is_in_percent_with_a_row_for_each_policy():
  table = run_report.score_table({"ours": scores(0.25), "random": scores(0.1)})
  assert list(table.index) == ["ours", "random"]
  assert table.loc["ours", ("two_stage", "ndcg@10")] == pytest.approx(25)


def test_printed_table_has_a_block_for_each_stage():
  text = run_report.format_table(run_report.score_table({"ours": scores(0.25)}))
  assert text.index("generator alone") < text.index("generator + ranker")
  assert text.count("25.0") == 2 * 5


def test_a_policy_of_unknown_value_is_named():
  cold = scores(0.1)
  cold["test"]["two_stage"]["precision@10"] = math.nan
  table = run_report.score_table({"ours": scores(0.25), "popularity": cold})
  (note,) = run_report.unknown_values(table)
  assert note.startswith("precision@10 of popularity is not known (nan): the test users show none")
  assert not run_report.unknown_values(run_report.score_table({"ours": scores(0.25)}))


def test_csv_names_stage_and_metric():
  header, row = run_report.flat_csv(run_report.score_table({"ours": scores(0.5)})).splitlines()
  assert header.startswith("policy,one_stage/precision@1,")
  assert row.startswith("ours,50,")


@pytest.mark.parametrize(
  ("metric", "bad", "sound"),
  [
    ("effective_sample_share", 0.05, 0.5),
    ("share_capped", 0.5, 0.05),
    ("policy_entropy", 0.1, 4.0),
    ("ranker_probability", 1e-5, 0.3),
  ],
)
def test_unsound_training_is_said_in_words(metric, bad, sound):
  assert not run_report.health_warnings({metric: sound}, "ips")
  (warning,) = run_report.health_warnings({metric: bad}, "ips")
  assert metric in warning


def test_timings_tell_what_was_reused():
  timings = {"log": {"seconds": 3.0, "reused": True}, "ranker": {"seconds": 2.0, "reused": False}}
  assert run_report.format_timings(timings) == "Time: log reused, ranker 2.0 s"
