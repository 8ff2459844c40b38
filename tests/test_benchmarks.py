"""The benchmarks of growth run, and count what they say they count."""

import argparse

import numpy as np
import pandas as pd
import pytest

from benchmarks import cells, coverage, evaluation, examination, growth, measuring, serving, slates
from benchmarks.growth import Point
from benchmarks.measuring import Peaks, Work
from tf_twostage import losses
from tf_twostage.data.sets import make_slates
from tf_twostage.losses.slates import SAMPLING


def test_floor_is_what_takes_longer():
  peaks = Peaks(operations=100.0, exponentials=10.0, bytes=1000.0)
  # 200 / 100 + 5 / 10 = 2.5 s of computing, beside 1 s of moving 1000 bytes, or 4 s of 4000.
  assert peaks.floor(Work(200.0, 5.0, 1000.0)) == (2.5, "operations")
  assert peaks.floor(Work(200.0, 5.0, 4000.0)) == (4.0, "bytes")


def test_exponent_is_that_of_a_power():
  sizes = np.array([1, 10, 1000])
  assert measuring.exponent(sizes, 7 * sizes**1.5) == pytest.approx(1.5)
  assert np.isnan(measuring.exponent([3], [5]))


def test_work_of_a_step():
  point = Point(items=10, users=5, rows=1, batch_size=2, slate_size=4, num_slates=3, width=3)
  made = growth.contenders(point)
  assert {growth.REFERENCE, *(set(losses.LOSSES) - {"two_stage_ips", "safe_slate"})} <= set(made)
  # Logits: 2 x 10; item table 10 x 3; user table 5 x 3.
  plain = growth.work(made["ips"], point)
  assert plain == Work(
    operations=6 * 2 * 10 * 3 + 6 * 2 * 3 * 3,
    exponentials=20,
    bytes=4 * (5 * 20 + 8 * 30 + 4 * 15),
  )
  # With sparse L2 the batch's 2 users alone move.
  lighter = growth.work(made["cross_entropy, sparse L2"], point)
  assert plain.bytes - lighter.bytes == 4 * 4 * (5 - 2) * 3
  # A support of 4 x 2 items stands for the 10.
  small = growth.work(made["ips, support"], point)
  assert small.bytes == 4 * (5 * 16 + 8 * 24 + 4 * 2 * 3)
  ranked = growth.work(made["ips, two-stage policy"], point)
  assert ranked.operations - plain.operations == 2 * 2 * 10 * 3
  assert ranked.bytes - plain.bytes == 4 * (2 * 20 + 30)
  # 2 rows x 3 slates x 3 draws, and counts of 2 x 10.
  drawn = growth.work(made["two_stage_ips, systematic"], point)
  assert drawn.bytes - ranked.bytes == 4 * 2 * (18 + 20)


FAILING = {n for n, r in coverage.REGIMES.items() if isinstance(r, coverage.Regime)}


@pytest.mark.parametrize("name", sorted(FAILING - {"moderate", "100 users"}))
def test_logs_whose_intervals_fail_carry_a_warning(name):
  frame = coverage.measure(coverage.REGIMES[name], 15, num_resamples=0, seed=1)
  assert frame["unreliable"].mean() > 0.9
  assert frame["bound"].dropna().all()


def test_slates_have_warnings_where_the_target_policy_is_far():
  near, far = (
    coverage.measure(coverage.REGIMES[name], 5, num_resamples=0, seed=1).groupby("estimator")
    for name in ("distinct slates", "distant slates")
  )
  assert not near["unreliable"].any().any()
  assert far["unreliable"].all()["sips"]
  assert far["effective_sample_size"].mean()["iips"] > far["effective_sample_size"].mean()["sips"]


def test_coverage_is_counted_without_warnings_and_in_all_logs():
  frame = coverage.measure(coverage.REGIMES["moderate"], 15, num_resamples=50, seed=1)
  assert frame["unreliable"].mean() < 0.1
  low, high = (frame[f"bootstrap_interval_{side}"] for side in ("low", "high"))
  assert (low < high).all()
  frame.loc[frame["estimator"] == "ips", ["unreliable", "t"]] = [False, True]
  frame.loc[[0], ["unreliable", "t"]] = [True, False]  # of ips
  row = coverage.table(frame).loc["ips"]
  assert row["", "no warning"] == pytest.approx(100 * 14 / 15)
  assert row["no warning", "t"] == 100
  assert row["all logs", "t"] == pytest.approx(100 * 14 / 15)


def test_axes_are_measured_where_they_matter():
  made = growth.contenders(growth.BASE)
  reads = {axis: {name for name, c in made.items() if c.reads(axis)} for axis in growth.AXES}
  assert reads["items"] == set(made)
  drawn = {"two_stage_ips, systematic", "two_stage_ips, categorical", "vanilla_policy_gradient"}
  assert reads["num_slates"] == {*drawn, "two_stage_ips, systematic, support"}
  exact = {"two_stage_ips, exact", "two_stage_ips, exact, support"}
  others = {"top_k", "two_stage_ltr", "ips, two-stage policy", "ips, distinct policy"}
  found = {name.removesuffix(", XLA") for name in reads["slate_size"]}
  assert found == {*others, *exact, *reads["num_slates"]}


def test_contenders_without_room_are_left_out():
  last = pd.DataFrame(
    {"contender": ["part", "small", "large"], "held_mb": [np.nan, 1, 1], "peak_mb": [np.nan, 5, 50]}
  )
  # Ten times as large: 10 + 50 MB for the small one alone, 20 + 500 for both.
  assert growth._that_fit(last, 10, 520) == ["small", "large"]
  assert growth._that_fit(last, 10, 519) == ["small"]
  assert growth._that_fit(last, 10, 59) == []


def test_growth_end_to_end(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(growth, "BASE", Point(items=50, users=20, rows=40, batch_size=4))
  # The memory of a cell is measured in a process of its own, which takes seconds to start.
  monkeypatch.setattr(measuring, "in_own_process", lambda _, point, name: float(point.items))
  sizes = ["--axis", "items", "--values", "32", "64"]
  growth.main([*sizes, "--only", "cross_entropy", "--turns", "2", "--output", str(tmp_path)])
  frame = pd.read_csv(tmp_path / "items.csv").set_index(["contender", "value"])
  step = frame.loc["cross_entropy"]
  assert (step["processor_ms"] > 0).all()
  np.testing.assert_allclose(
    step["times_floor"], step["processor_ms"] / step["floor_processor_ms"], rtol=1e-4
  )
  # A row more in the table and its slot: 32 items of 2 x 32 floats.
  assert np.diff(step["held_mb"] * measuring.MB)[0] == pytest.approx(32 * 2 * 32 * 4, rel=1e-2)
  printed = capsys.readouterr().out
  assert "growth with items" in printed
  assert growth.exponents(frame.reset_index()).loc["cross_entropy", "memory, all"] == pytest.approx(
    1
  )


def test_memory_of_a_run():
  megabytes = measuring.peak_growth(lambda: np.ones(2**23))  # 64 MB that are gone at the end
  assert 60 < megabytes < 80


def test_evaluation_end_to_end(tmp_path):
  evaluation.main(["--items", "40", "--turns", "1", "--output", str(tmp_path)])
  frame = pd.read_csv(tmp_path / "evaluation.csv")
  assert len(frame) == 5
  assert (frame["times_floor"] > 0).all()


def test_serving_picture(tmp_path):
  calls = [(items, call) for items in (10, 100) for call in (serving.BARE, "recommend")]
  frame = pd.DataFrame(calls, columns=["items", "call"]).assign(users=1, p50_ms=1.0, floor_ms=0.1)
  serving.draw(frame, tmp_path / "serving.png")
  assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


def test_slates_compare_both_samplings_of_one_row():
  arguments = argparse.Namespace(items=7, slate_size=3, calls=2)
  for sampling in SAMPLING:
    shares, counts = slates.estimates(arguments, sampling, num_slates=2)
    assert shares.shape == (2, slates.ROWS)
    assert counts.shape == (2, slates.ROWS, 7)
    assert (shares[0] != shares[1]).any()


def test_truth_of_a_cascade_is_the_share_that_stays():
  behaviour = {"continuation": np.zeros(3)}
  world = make_slates(num_users=2, num_items=3, slate_size=3, policies={"one": 1.0}, **behaviour)
  found = examination.truth(world, world.policies["one"])
  # Everybody leaves after the first click.
  slots, unclicked = world.slot_probabilities(world.policies["one"]), 1 - world.relevance
  first = np.mean(np.sum(slots[..., 0] * unclicked, axis=1))
  np.testing.assert_allclose(found[:2], [1, first], atol=0.01)


def test_an_index_of_more_probes_finds_more(capsys):
  cells.main(["--items", "3000", "--cells", "30", "--probes", "1", "30", "--turns", "1"])
  recalls = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[2:]]
  assert recalls[0] == 1  # exact
  assert recalls[1] < recalls[2] <= 1
