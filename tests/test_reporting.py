"""Tables, pictures, warnings."""

import builtins

import pytest

from tf_twostage import reporting
from tf_twostage.evaluation.protocol import CUTOFFS


def scores(value):
  metrics = {f"{m}@{k}": value for m in ("precision", "recall", "ndcg") for k in CUTOFFS}
  return {split: {"one_stage": metrics, "two_stage": metrics} for split in ("validation", "test")}


HISTORY = [
  {"epoch": e, "training": {"mean_loss": 1 / e}, "scores": scores(e / 10)} for e in (1, 2, 3)
]


def test_table_is_in_percent_with_a_row_for_each_policy():
  table = reporting.score_table({"ours": scores(0.25), "random": scores(0.1)})
  assert list(table.index) == ["ours", "random"]
  assert table.loc["ours", ("two_stage", "ndcg@10")] == pytest.approx(25)


def test_printed_table_has_a_block_for_each_stage():
  text = reporting.format_table(reporting.score_table({"ours": scores(0.25)}))
  assert text.index("generator alone") < text.index("generator + ranker")
  assert text.count("25.0") == 2 * 5


def test_csv_names_stage_and_metric():
  header, row = reporting.flat_csv(reporting.score_table({"ours": scores(0.5)})).splitlines()
  assert header.startswith("policy,one_stage/precision@1,")
  assert row.startswith("ours,50.0000,")


def test_curves_are_a_picture_written_in_one_step(tmp_path):
  path = tmp_path / "curves.png"
  reporting.plot_curves(HISTORY, {"popularity": scores(0.2)}, "a run", path)
  assert path.read_bytes().startswith(b"\x89PNG")
  assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_remedy_is_told(tmp_path, monkeypatch, caplog):
  real_import = builtins.__import__

  def without_matplotlib(name, *arguments, **options):
    if name.startswith("matplotlib"):
      raise ImportError(name)
    return real_import(name, *arguments, **options)

  monkeypatch.setattr(builtins, "__import__", without_matplotlib)
  reporting.plot_curves(HISTORY, {}, "a run", tmp_path / "curves.png")
  assert "tf_twostage[plot]" in caplog.text
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("metric", "bad", "sound"),
  [
    ("effective_sample_share", 0.05, 0.5),
    ("share_capped", 0.5, 0.05),
    ("policy_entropy", 0.1, 4.0),
    ("ranker_share", 1e-5, 0.3),
  ],
)
def test_unsound_training_is_said_in_words(metric, bad, sound):
  assert not reporting.health_warnings({metric: sound}, "ips")
  (warning,) = reporting.health_warnings({metric: bad}, "ips")
  assert metric in warning


def test_timings_tell_what_was_reused():
  timings = {"log": {"seconds": 3.0, "reused": True}, "ranker": {"seconds": 2.0, "reused": False}}
  assert reporting.format_timings(timings) == "Time: log reused, ranker 2.0 s"
