"""Tables of an experiment, against NumPy and SciPy on made-up histories."""

import io
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.histories import METRICS, SPLITS, STAGES, history, random_scores, scores
from tf_twostage.metrics import FULL_INFORMATION
from tf_twostage.reports import tables

SEEDS = 4
VARIANTS = ("first", "second", "third")


@pytest.fixture
def drawn():
  """Scores by (variant, seed); no two numbers alike."""
  rng = np.random.default_rng(0)
  return {(v, seed): random_scores(rng) for v in VARIANTS for seed in range(SEEDS)}


def every_cell(scores_by_cell):
  """The table of scores by (variant, seed), or by (variant, log, seed)."""
  return tables.every_cell(
    {
      tables.Cell(variant, *((0, *rest) if len(rest) == 1 else rest)): history(given)
      for (variant, *rest), given in scores_by_cell.items()
    }
  )


def results(scores_by_cell, baselines=None):
  return tables.results(every_cell(scores_by_cell), {0: baselines or {}})


def of_precisions(precisions, baselines=None):
  """Results from test precision@10 in percent by variant, a number for each seed."""
  cells = {
    (variant, seed): scores(0.5, value / 100)
    for variant, values in precisions.items()
    for seed, value in enumerate(values)
  }
  fixed = {name: scores(value / 100) for name, value in (baselines or {}).items()}
  return results(cells, fixed)


def of_logs(precisions, baselines):
  """As `of_precisions`, but a number for each log, whose two seeds differ by a point."""
  cells = {
    (variant, log, seed): scores(0.5, (value + seed - 0.5) / 100)
    for variant, values in precisions.items()
    for log, value in enumerate(values)
    for seed in range(2)
  }
  logs = len(next(iter(precisions.values())))
  fixed = {
    log: {name: scores(values[log] / 100) for name, values in baselines.items()}
    for log in range(logs)
  }
  return tables.results(every_cell(cells), fixed)


def blocks(precisions, baselines=None):
  found = of_precisions(precisions, baselines or {"popularity": 1})
  return tables.summaries(found, list(precisions))


def column(text, policy, metric="P@10", stage=0):
  """A cell of a Markdown table, by the names of its row and column."""
  header, _, *rows = text.split("\n\n")[stage].strip().splitlines()
  place = [cell.strip() for cell in header.split("|")].index(metric)
  (row,) = [r for r in rows if r.split("|")[1].strip() == policy]
  return row.split("|")[place].strip()


# Every seed


def test_a_row_holds_the_epoch_that_validation_users_score_highest():
  epochs = [scores(0.2, 0.9), scores(0.4, 0.1), scores(0.3, 0.8)]
  (row,) = tables.every_cell({tables.Cell("v", 0, 0): history(*epochs)}).to_dict("records")
  assert row["best_epoch"] == 2
  assert row["validation/two_stage/precision@10"] == pytest.approx(40)
  assert row["test/one_stage/ndcg@5"] == pytest.approx(10)


def test_every_score_is_there_in_percent(drawn):
  table = every_cell(drawn)
  for row in table.to_dict("records"):
    given = drawn[row["variant"], row["seed"]]
    for split in SPLITS:
      for stage in STAGES:
        for metric in METRICS:
          assert row[f"{split}/{stage}/{metric}"] == pytest.approx(
            100 * given[split][stage][metric]
          )


def test_rows_are_ordered_by_log_then_seed_then_as_given():
  cells = [("b", 1, 0), ("b", 0, 1), ("a", 0, 1), ("b", 0, 0), ("a", 0, 0)]
  table = every_cell(dict.fromkeys(cells, scores(0.5)))
  rows = table[["variant", "log", "seed"]].itertuples(index=False)
  assert [tuple(row) for row in rows] == [cells[i] for i in (3, 4, 1, 2, 0)]


def test_csv_and_back(drawn):
  table = every_cell(drawn)
  text = table.to_csv(index=False, float_format="%.6f")
  pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), table, rtol=0, atol=1e-6)


# Means and standard errors


def test_means_and_standard_errors_are_over_seeds(drawn):
  result = tables.summaries(results(drawn, {"popularity": scores(0.1)}), VARIANTS)
  for stage in STAGES:
    for metric in FULL_INFORMATION.compared:
      for variant in VARIANTS:
        values = [100 * drawn[variant, seed]["test"][stage][metric] for seed in range(SEEDS)]
        row = result[stage].loc["learned", variant][metric]
        assert row["mean"] == pytest.approx(np.sum(values) / SEEDS)
        # The square root of the unbiased variance over n.
        squares = np.sum(np.square(values - np.mean(values)))
        assert row["se"] == pytest.approx(np.sqrt(squares / (SEEDS - 1) / SEEDS))


def test_baselines_have_test_scores_and_no_standard_error(drawn):
  rng = np.random.default_rng(1)
  baselines = {name: random_scores(rng) for name in ("popularity", "random")}
  result = tables.summaries(results(drawn, baselines), VARIANTS)
  for stage in STAGES:
    assert list(result[stage].loc["baseline"].index) == ["popularity", "random"]
    for name, given in baselines.items():
      for metric in FULL_INFORMATION.compared:
        row = result[stage].loc["baseline", name][metric]
        assert row["mean"] == pytest.approx(100 * given["test"][stage][metric])
        assert np.isnan(row["se"])


def test_rows_keep_the_order_of_the_variants(drawn):
  order = ["third", "first", "second"]
  result = tables.summaries(results(drawn, {"popularity": scores(0.1)}), order)
  assert list(result["one_stage"].loc["learned"].index) == order


def test_one_seed_has_a_mean_and_no_standard_error():
  row = blocks({"only": [40.0]})["one_stage"].loc["learned", "only"]["precision@10"]
  assert row["mean"] == pytest.approx(40)
  assert np.isnan(row["se"])


# What is printed


def test_a_cell_shows_mean_standard_error_and_change():
  # 40, 50, 60: mean 50, variance (100 + 0 + 100) / 2, standard error sqrt(100 / 3) = 5.77.
  # 60 is 20% above 50, 45 is 10% below.
  given = {"reference": [40, 50, 60], "better": [60, 60, 60], "worse": [45, 45, 45]}
  text = tables.to_markdown(blocks(given), "reference").replace("*", "")
  assert column(text, "reference") == "50.0 ± 5.8"
  assert column(text, "better") == "60.0 ± 0.0 (+20.0%)"
  assert column(text, "worse") == "45.0 ± 0.0 (-10.0%)"


def test_one_seed_is_printed_without_plus_minus_or_bold():
  text = tables.to_markdown(blocks({"reference": [40], "other": [44]}), "reference")
  assert column(text, "reference") == "40.0"
  assert column(text, "other") == "44.0 (+10.0%)"


def test_baselines_are_neither_bold_nor_compared():
  text = tables.to_markdown(blocks({"reference": [40, 50]}, {"popularity": 99}), "reference")
  assert column(text, "*popularity*") == "99.0"
  assert column(text, "reference") == "**45.0 ± 5.0**"


def test_a_row_is_bold_unless_another_is_better_by_a_paired_test():
  # Over the best: "near" differs by 1, -1, 0.5 with a mean near 0, "far" by 3, 4, 5, 4.
  best = np.array([50.0, 60, 70, 65])
  given = {"best": best, "near": best - [1, -1, 0.5, 0], "far": best - [3, 4, 5, 4]}
  assert stats.ttest_rel(given["best"], given["near"]).pvalue > 0.05
  assert 3 * stats.ttest_rel(given["best"], given["far"]).pvalue < 0.05
  text = tables.to_markdown(blocks(given), "best")
  assert column(text, "best").startswith("**")
  assert column(text, "near").startswith("**")
  assert not column(text, "far").startswith("**")


def test_bold_allows_for_the_number_of_pairs():
  # The test of the first two decides alone; among three pairs it does not.
  base = np.array([50.0, 52, 51, 53, 50, 51])
  given = {
    "a": base,
    "b": base + np.array([0.1, 0.9, 0.2, 1.0, 0.0, 0.6]),
    "c": base + np.array([2, -2, 1, -1, 3, -3]),
  }
  assert 0.05 / 3 < stats.ttest_rel(given["a"], given["b"]).pvalue < 0.05
  pair = blocks({name: given[name] for name in "ab"})
  assert not column(tables.to_markdown(pair, "a"), "a").startswith("**")
  assert column(tables.to_markdown(blocks(given), "a"), "a").startswith("**")


def test_nothing_improves_on_nothing():
  text = tables.to_markdown(blocks({"reference": [0, 0], "other": [1, 1]}), "reference")
  assert column(text, "other").strip("*") == "1.0 ± 0.0"


def test_markdown_rows_have_the_columns_of_their_header(drawn):
  result = tables.summaries(results(drawn, {"popularity": scores(0.1)}), VARIANTS)
  for block in tables.to_markdown(result, "first").strip().split("\n\n"):
    (bars,) = {line.count("|") for line in block.splitlines()}
    assert bars == len(FULL_INFORMATION.compared) + 2
    assert len(block.splitlines()) == 2 + len(VARIANTS) + 1


def test_latex_columns_rows_and_braces_are_balanced():
  given = {"cross_entropy": [40, 50], "ips:policy=two_stage": [41, 52]}
  text = tables.to_latex(blocks(given, {"ranker, all items": 60}), "cross_entropy")
  assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(STAGES)
  for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
    (columns,) = re.match(r"\{([lr]+)\}", body).groups()
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(given) + 1
    assert {row.count("&") for row in rows} == {len(columns) - 1}
    assert all(line.endswith(r"\\") or line == r"\hline" for line in body.splitlines()[1:])
  for line in text.splitlines():
    assert line.count("{") == line.count("}")
    if not line.startswith("%"):
      # Outside comments, what LaTeX reads as a command is escaped.
      assert not re.search(r"(?<!\\)[%_#]|±", line)
  assert r"ips:policy=two\_stage" in text
  assert r"\textbf{46.5 $\pm$ 5.5 (+3.3\%)}" in text  # 46.5 / 45 = 1.0333; not beaten


def test_a_terminal_gets_the_numbers_with_a_star_at_what_is_not_beaten():
  given = {"reference": [40, 50, 45], "other": [60, 71, 66]}  # 20 to 21 above
  one, two, note = tables.to_text(blocks(given), "seeds").split("\n\n")
  assert "generator alone" in one
  assert "generator + ranker" in two
  assert one.count("*65.7 ± 3.2") == len(FULL_INFORMATION.compared)
  assert "*45.0" not in one
  assert "%)" not in one.split("\n", 1)[1]  # changes would not fit
  assert "standard error over seeds" in note


# Several logs


def test_errors_are_over_logs_of_means_over_seeds():
  found = of_logs({"a": [50, 60, 70]}, {"popularity": [10, 20, 60]})
  block = tables.summaries(found, ["a"])["two_stage"]["precision@10"]
  # 50, 60, 70: standard deviation 10. 10, 20, 60: mean 30, variance (400 + 100 + 900) / 2 = 700.
  assert block["mean"]["learned", "a"] == pytest.approx(60)
  assert block["se"]["learned", "a"] == pytest.approx(10 / np.sqrt(3))
  assert block["mean"]["baseline", "popularity"] == pytest.approx(30)
  assert block["se"]["baseline", "popularity"] == pytest.approx(np.sqrt(700 / 3))
  assert found.repeated == "logs"


def test_pairs_are_logs_for_variants_and_baselines():
  found = of_logs({"a": FIRST, "b": SECOND}, {"popularity": [90, 91, 92, 93, 95]})
  tests = tables.paired_tests(found, ["a", "b"], ["popularity"])
  one = tests[tests["stage"] == "one_stage"].set_index(["first", "second"])
  assert set(tests["pairs"]) == {5}
  assert one["p_t"]["b", "a"] == pytest.approx(stats.ttest_rel(SECOND, FIRST).pvalue)
  popular = stats.ttest_rel(FIRST, [90, 91, 92, 93, 95])
  assert one["p_t"]["a", "popularity"] == pytest.approx(popular.pvalue)


# Choice of settings


def test_validation_users_alone_choose():
  table = results(
    {
      **{("modest", seed): scores(0.60, 0.10) for seed in range(2)},
      **{("best on test", seed): scores(0.50, 0.90) for seed in range(2)},
    }
  )
  assert tables.choose({"best on test": "loss", "modest": "loss"}, table) == ["modest"]


def test_the_mean_over_seeds_chooses_not_the_best_seed():
  validation = {"steady": [0.5, 0.5], "lucky once": [0.8, 0.1]}
  table = results(
    {(v, seed): scores(s) for v, values in validation.items() for seed, s in enumerate(values)}
  )
  assert tables.choose(dict.fromkeys(validation, "loss"), table) == ["steady"]


def test_two_stages_choose_not_one():
  better_alone, better_together = scores(0.5), scores(0.5)
  better_alone["validation"]["one_stage"]["precision@10"] = 0.9
  better_together["validation"]["two_stage"]["precision@10"] = 0.6
  table = results({("alone", 0): better_alone, ("together", 0): better_together})
  assert tables.choose({"alone": "loss", "together": "loss"}, table) == ["together"]


def test_every_family_is_chosen_from_in_order():
  validation = {"b1": 0.1, "a1": 0.2, "b2": 0.3, "a2": 0.1}
  table = results({(v, 0): scores(value) for v, value in validation.items()})
  families = {"b1": "b", "a1": "a", "b2": "b", "a2": "a"}
  assert tables.choose(families, table) == ["b2", "a1"]


def test_of_equals_the_first_is_chosen():
  table = results({("x", 0): scores(0.5), ("y", 0): scores(0.5)})
  assert tables.choose({"y": "loss", "x": "loss"}, table) == ["y"]


def test_a_sweep_shows_what_validation_users_say():
  table = results(
    {
      ("x", 0): scores(0.5, 0.9),
      ("x", 1): scores(0.7, 0.9),
      ("y", 0): scores(0.4),
      ("y", 1): scores(0.4),
    }
  )
  x, y = tables.sweep(["x", "y"], table, ["x"]).to_dict("records")
  assert (x["variant"], x["chosen"], y["variant"], y["chosen"]) == ("x", "*", "y", "")
  assert x["validation precision@10"] == pytest.approx(60)
  assert x["± se"] == pytest.approx(10)  # 50 and 70: standard deviation sqrt(200), over sqrt(2)
  assert y["± se"] == pytest.approx(0)


# Paired tests

FIRST = [93.1, 94.0, 92.2, 93.7, 95.0]
SECOND = [92.0, 93.1, 92.9, 92.3, 93.3]


def test_pairs_are_tested_as_scipy_does():
  tests = tables.paired_tests(
    of_precisions({"first": FIRST, "second": SECOND}), ["first", "second"]
  )
  assert list(tests["stage"]) == list(STAGES)
  for row in tests.to_dict("records"):
    assert (row["first"], row["second"], row["pairs"]) == ("second", "first", 5)
    assert row["difference"] == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    assert row["standard_error"] == pytest.approx(stats.sem(np.subtract(SECOND, FIRST)))
    assert row["p_t"] == pytest.approx(stats.ttest_rel(SECOND, FIRST).pvalue)
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(SECOND, FIRST).pvalue)


def test_the_t_test_by_hand():
  # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3) with 2 degrees of
  # freedom, whose distribution function is 1/2 + t / (2 sqrt(2 + t^2)).
  tests = tables.paired_tests(of_precisions({"a": [50, 50, 50], "b": [51, 52, 53]}), ["a", "b"])
  t = 2 * np.sqrt(3)
  assert tests["standard_error"][0] == pytest.approx(1 / np.sqrt(3))
  assert tests["p_t"][0] == pytest.approx(2 * (1 - (1 / 2 + t / (2 * np.sqrt(2 + t**2)))))
  # Three differences of one sign: 2 of the 2^3 equally likely patterns of signs.
  assert tests["p_wilcoxon"][0] == pytest.approx(2 / 2**3)


def test_seeds_are_paired_whatever_the_order_of_rows(drawn):
  cells = every_cell(drawn)
  shuffled = cells.sample(frac=1, random_state=0)
  pd.testing.assert_frame_equal(
    tables.paired_tests(tables.results(shuffled, {0: {}}), VARIANTS),
    tables.paired_tests(tables.results(cells, {0: {}}), VARIANTS),
  )


def test_baselines_are_tested_against_their_fixed_score():
  found = of_precisions({"first": FIRST}, {"popularity": 93.5})
  tests = tables.paired_tests(found, ["first"], ["popularity"])
  for row in tests.to_dict("records"):
    assert (row["first"], row["second"]) == ("first", "popularity")
    assert row["difference"] == pytest.approx(np.mean(FIRST) - 93.5)
    assert row["p_t"] == pytest.approx(stats.ttest_1samp(FIRST, 93.5).pvalue)


def test_every_pair_is_tested_once(drawn):
  found = results(drawn, {"popularity": scores(0.5)})
  tests = tables.paired_tests(found, VARIANTS, ["popularity"])
  for stage in STAGES:
    pairs = [tuple(p) for p in tests.loc[tests["stage"] == stage, ["first", "second"]].to_numpy()]
    assert sorted(pairs) == [
      ("first", "popularity"),
      ("second", "first"),
      ("second", "popularity"),
      ("third", "first"),
      ("third", "popularity"),
      ("third", "second"),
    ]


def test_one_seed_gives_a_difference_and_no_p():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    tests = tables.paired_tests(of_precisions({"a": [50], "b": [52]}), ["a", "b"])
  assert list(tests["difference"]) == pytest.approx([2, 2])
  missing = ["standard_error", "change_low", "change_high", "p_t", "p_wilcoxon", "p_holm"]
  assert tests[missing].isna().all(axis=None)
  assert list(tests["change_%"]) == pytest.approx([4, 4])
  text = tables.tests_to_text(tests, "seeds", FULL_INFORMATION)
  assert "errors and tests need several seeds" in text
  assert "p_t" not in text


@pytest.mark.parametrize("shift", [0, 2])
def test_variants_that_differ_alike_on_every_seed_have_no_p(shift):
  given = {"a": [50, 60], "b": [50 + shift, 60 + shift]}
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    tests = tables.paired_tests(of_precisions(given), ["a", "b"])
  assert list(tests["difference"]) == pytest.approx([shift, shift])
  assert list(tests["standard_error"]) == pytest.approx([0, 0], abs=1e-9)
  assert tests[["p_t", "p_wilcoxon"]].isna().all(axis=None)


def test_some_equal_seeds_do_not_spoil_the_test():
  given = {"a": [50, 50, 50, 50], "b": [50, 51, 52, 53]}
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    tests = tables.paired_tests(of_precisions(given), ["a", "b"])
  assert tests["p_wilcoxon"].between(0, 1).all()


def test_one_variant_alone_is_said_to_have_no_test():
  tests = tables.paired_tests(of_precisions({"a": [50, 51]}), ["a"])
  assert tests.empty
  assert (
    tables.tests_to_text(tests, "seeds", FULL_INFORMATION)
    == "One variant: nothing to test against."
  )


# Curves


def test_curves_hold_precision_of_every_epoch():
  table = tables.curves({tables.Cell("v", 0, 3): history(scores(0.1, 0.2), scores(0.3, 0.4))})
  assert len(table) == 2 * len(SPLITS) * len(STAGES)
  (row,) = table[
    (table["epoch"] == 2) & (table["split"] == "test") & (table["stage"] == "one_stage")
  ].to_dict("records")
  assert (row["variant"], row["seed"]) == ("v", 3)
  assert row["score"] == pytest.approx(40)


def test_holm_by_hand():
  # Sorted .01, .02, .03, .04: times 4, 3, 2, 1 they are .04, .06, .06, .04, and never fall.
  np.testing.assert_allclose(tables.holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
  np.testing.assert_allclose(tables.holm([0.6, np.nan, 0.01]), [0.6, np.nan, 0.02])
  assert tables.holm([0.9, 0.8]).max() == 1
  assert len(tables.holm([])) == 0


def test_all_printed_tests_count_for_the_adjustment():
  given = {"a": FIRST, "b": SECOND, "c": [91.0, 93.5, 92.5, 92.8, 94.1]}
  found = of_precisions(given, {"popularity": 93.5})
  tests = tables.paired_tests(found, list(given), ["popularity"])
  assert len(tests) == 12  # two stages, three pairs, three baselines
  np.testing.assert_allclose(tests["p_holm"], tables.holm(tests["p_t"]))
  assert tests["p_holm"].min() == pytest.approx(12 * tests["p_t"].min())


def test_the_interval_of_the_change_holds_the_ratios_that_a_test_does_not_reject():
  first, second = np.array(FIRST), np.array(SECOND) - 5
  low, high = tables.ratio_interval(first, second)
  assert low < first.mean() / second.mean() < high
  for ratio in (low, high):
    assert stats.ttest_rel(first, ratio * second).pvalue == pytest.approx(0.05)
  tests = tables.paired_tests(of_precisions({"a": second, "b": first}), ["a", "b"])
  assert list(tests["change_%"]) == pytest.approx([100 * (first.mean() / second.mean() - 1)] * 2)
  assert list(tests["change_low"]) == pytest.approx([100 * (low - 1)] * 2)
  assert list(tests["change_high"]) == pytest.approx([100 * (high - 1)] * 2)


def test_the_change_from_a_fixed_score_has_the_interval_of_the_mean():
  low, high = tables.ratio_interval(np.array(FIRST), np.full(len(FIRST), 50.0))
  expected = stats.t.interval(0.95, 4, np.mean(FIRST), stats.sem(FIRST))
  np.testing.assert_allclose([low, high], np.divide(expected, 50))


def test_no_interval_of_a_change_from_what_may_be_nothing():
  assert np.isnan(tables.ratio_interval(np.array([1.0, 2, 3]), np.array([-1.0, 0, 1]))).all()


def test_the_interval_of_the_change_covers():
  rng = np.random.default_rng(0)
  runs, n, ratio = 2000, 5, 1.1
  shared = rng.normal(50, 3, (runs, n))
  first, second = (r * shared + rng.normal(0, 1, (runs, n)) for r in (ratio, 1.0))
  covered = [low < ratio < high for low, high in map(tables.ratio_interval, first, second)]
  assert abs(np.mean(covered) - 0.95) < 4 * np.sqrt(0.05 * 0.95 / runs)
