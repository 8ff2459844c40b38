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


def every_seed(scores_by_cell):
  return tables.every_seed({cell: history(given) for cell, given in scores_by_cell.items()})


def of_precisions(precisions):
  """A table from test precision@10 in percent by variant, a number for each seed."""
  return every_seed(
    {
      (variant, seed): scores(0.5, value / 100)
      for variant, values in precisions.items()
      for seed, value in enumerate(values)
    }
  )


def blocks(precisions, baselines=None):
  baselines = {
    name: scores(value / 100) for name, value in (baselines or {"popularity": 1}).items()
  }
  return tables.summaries(of_precisions(precisions), list(precisions), baselines)


def column(text, policy, metric="P@10", stage=0):
  """A cell of a Markdown table, by the names of its row and column."""
  header, _, *rows = text.split("\n\n")[stage].strip().splitlines()
  place = [cell.strip() for cell in header.split("|")].index(metric)
  (row,) = [r for r in rows if r.split("|")[1].strip() == policy]
  return row.split("|")[place].strip()


# Every seed


def test_a_row_holds_the_epoch_that_validation_users_score_highest():
  epochs = [scores(0.2, 0.9), scores(0.4, 0.1), scores(0.3, 0.8)]
  (row,) = tables.every_seed({("v", 0): history(*epochs)}).to_dict("records")
  assert row["best_epoch"] == 2
  assert row["validation/two_stage/precision@10"] == pytest.approx(40)
  assert row["test/one_stage/ndcg@5"] == pytest.approx(10)


def test_every_score_is_there_in_percent(drawn):
  table = every_seed(drawn)
  for row in table.to_dict("records"):
    given = drawn[row["variant"], row["seed"]]
    for split in SPLITS:
      for stage in STAGES:
        for metric in METRICS:
          assert row[f"{split}/{stage}/{metric}"] == pytest.approx(
            100 * given[split][stage][metric]
          )


def test_rows_are_ordered_by_seed_and_then_as_given():
  cells = [("b", 1), ("a", 1), ("b", 0), ("a", 0)]
  table = every_seed(dict.fromkeys(cells, scores(0.5)))
  assert list(zip(table["variant"], table["seed"], strict=True)) == [
    ("b", 0),
    ("a", 0),
    ("b", 1),
    ("a", 1),
  ]


def test_csv_and_back(drawn):
  table = every_seed(drawn)
  text = table.to_csv(index=False, float_format="%.6f")
  pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), table, rtol=0, atol=1e-6)


# Means and standard errors


def test_means_and_standard_errors_are_over_seeds(drawn):
  result = tables.summaries(every_seed(drawn), VARIANTS, {"popularity": scores(0.1)})
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
  result = tables.summaries(every_seed(drawn), VARIANTS, baselines)
  for stage in STAGES:
    assert list(result[stage].loc["baseline"].index) == ["popularity", "random"]
    for name, given in baselines.items():
      for metric in FULL_INFORMATION.compared:
        row = result[stage].loc["baseline", name][metric]
        assert row["mean"] == pytest.approx(100 * given["test"][stage][metric])
        assert np.isnan(row["se"])


def test_rows_keep_the_order_of_the_variants(drawn):
  order = ["third", "first", "second"]
  result = tables.summaries(every_seed(drawn), order, {"popularity": scores(0.1)})
  assert list(result["one_stage"].loc["learned"].index) == order


def test_one_seed_has_a_mean_and_no_standard_error():
  row = blocks({"only": [40.0]})["one_stage"].loc["learned", "only"]["precision@10"]
  assert row["mean"] == pytest.approx(40)
  assert np.isnan(row["se"])


# What is printed


def test_a_cell_shows_mean_standard_error_and_improvement():
  # 40, 50, 60: mean 50, variance (100 + 0 + 100) / 2, standard error sqrt(100 / 3) = 5.77.
  # 60 is 20% above 50, 45 is 10% below.
  given = {"reference": [40, 50, 60], "better": [60, 60, 60], "worse": [45, 45, 45]}
  text = tables.to_markdown(blocks(given), "reference")
  assert column(text, "reference") == "50.0 ± 5.8"
  assert column(text, "better") == "**60.0 ± 0.0 (+20.0%)**"
  assert column(text, "worse") == "45.0 ± 0.0 (-10.0%)"


def test_one_seed_is_printed_without_plus_minus():
  text = tables.to_markdown(blocks({"reference": [40], "other": [44]}), "reference")
  assert column(text, "reference") == "40.0"
  assert column(text, "other") == "**44.0 (+10.0%)**"


def test_baselines_are_neither_bold_nor_compared():
  text = tables.to_markdown(blocks({"reference": [40, 50]}, {"popularity": 99}), "reference")
  assert column(text, "*popularity*") == "99.0"
  assert column(text, "reference") == "**45.0 ± 5.0**"


def test_equal_means_are_both_bold():
  text = tables.to_markdown(blocks({"reference": [40, 50], "other": [50, 40]}), "reference")
  assert column(text, "reference") == "**45.0 ± 5.0**"
  assert column(text, "other") == "**45.0 ± 5.0 (+0.0%)**"


def test_a_difference_that_rounding_hides_decides_who_is_bold():
  text = tables.to_markdown(blocks({"reference": [50.01], "other": [50.02]}), "reference")
  assert column(text, "reference") == "50.0"
  assert column(text, "other").startswith("**50.0")


def test_nothing_improves_on_nothing():
  text = tables.to_markdown(blocks({"reference": [0, 0], "other": [1, 1]}), "reference")
  assert column(text, "other") == "**1.0 ± 0.0**"


def test_the_best_of_each_metric_and_stage_is_marked(drawn):
  result = tables.summaries(every_seed(drawn), VARIANTS, {"popularity": scores(0.1)})
  text = tables.to_markdown(result, "first")
  for place, stage in enumerate(STAGES):
    for metric, measure in FULL_INFORMATION.compared.items():
      means = {
        v: np.mean([drawn[v, seed]["test"][stage][metric] for seed in range(SEEDS)])
        for v in VARIANTS
      }
      for variant in VARIANTS:
        bold = column(text, variant, measure.heading, place).startswith("**")
        assert bold == (variant == max(means, key=means.get))


def test_markdown_rows_have_the_columns_of_their_header(drawn):
  result = tables.summaries(every_seed(drawn), VARIANTS, {"popularity": scores(0.1)})
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
  assert r"\textbf{46.5 $\pm$ 5.5 (+3.3\%)}" in text  # 46.5 / 45 = 1.0333


def test_a_terminal_gets_the_numbers_with_a_star_at_the_best():
  text = tables.to_text(blocks({"reference": [40, 50], "other": [60, 60]}), "reference")
  one, two, note = text.split("\n\n")
  assert "generator alone" in one
  assert "generator + ranker" in two
  assert one.count("*60.0 ± 0.0") == len(FULL_INFORMATION.compared)
  assert "%)" not in one.split("\n", 1)[1]  # improvements would not fit
  assert "standard error" in note


# Choice of settings


def test_validation_users_alone_choose():
  table = every_seed(
    {
      **{("modest", seed): scores(0.60, 0.10) for seed in range(2)},
      **{("best on test", seed): scores(0.50, 0.90) for seed in range(2)},
    }
  )
  assert tables.choose({"best on test": "loss", "modest": "loss"}, table) == ["modest"]


def test_the_mean_over_seeds_chooses_not_the_best_seed():
  validation = {"steady": [0.5, 0.5], "lucky once": [0.8, 0.1]}
  table = every_seed(
    {(v, seed): scores(s) for v, values in validation.items() for seed, s in enumerate(values)}
  )
  assert tables.choose(dict.fromkeys(validation, "loss"), table) == ["steady"]


def test_two_stages_choose_not_one():
  better_alone, better_together = scores(0.5), scores(0.5)
  better_alone["validation"]["one_stage"]["precision@10"] = 0.9
  better_together["validation"]["two_stage"]["precision@10"] = 0.6
  table = every_seed({("alone", 0): better_alone, ("together", 0): better_together})
  assert tables.choose({"alone": "loss", "together": "loss"}, table) == ["together"]


def test_every_family_is_chosen_from_in_order():
  validation = {"b1": 0.1, "a1": 0.2, "b2": 0.3, "a2": 0.1}
  table = every_seed({(v, 0): scores(value) for v, value in validation.items()})
  families = {"b1": "b", "a1": "a", "b2": "b", "a2": "a"}
  assert tables.choose(families, table) == ["b2", "a1"]


def test_of_equals_the_first_is_chosen():
  table = every_seed({("x", 0): scores(0.5), ("y", 0): scores(0.5)})
  assert tables.choose({"y": "loss", "x": "loss"}, table) == ["y"]


def test_a_sweep_shows_what_validation_users_say():
  table = every_seed(
    {
      ("x", 0): scores(0.5, 0.9),
      ("x", 1): scores(0.7, 0.9),
      ("y", 0): scores(0.4),
      ("y", 1): scores(0.4),
    }
  )
  x, y = tables.sweep(table, ["x"]).to_dict("records")
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
    assert (row["first"], row["second"], row["seeds"]) == ("second", "first", 5)
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


def test_seeds_are_paired_whatever_the_order_of_rows():
  table = of_precisions({"first": FIRST, "second": SECOND})
  shuffled = table.sample(frac=1, random_state=0)
  pd.testing.assert_frame_equal(
    tables.paired_tests(shuffled, ["first", "second"]),
    tables.paired_tests(table, ["first", "second"]),
  )


def test_baselines_are_tested_against_their_fixed_score():
  tests = tables.paired_tests(
    of_precisions({"first": FIRST}), ["first"], {"popularity": scores(0.5, 0.935)}
  )
  for row in tests.to_dict("records"):
    assert (row["first"], row["second"]) == ("first", "popularity")
    assert row["difference"] == pytest.approx(np.mean(FIRST) - 93.5)
    assert row["p_t"] == pytest.approx(stats.ttest_1samp(FIRST, 93.5).pvalue)


def test_every_pair_is_tested_once(drawn):
  tests = tables.paired_tests(every_seed(drawn), VARIANTS, {"popularity": scores(0.5)})
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
  assert tests[["standard_error", "p_t", "p_wilcoxon"]].isna().all(axis=None)
  assert "NaN" in tables.tests_to_text(tests, FULL_INFORMATION)


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
  assert tables.tests_to_text(tests, FULL_INFORMATION) == "One variant: nothing to test against."


# Curves


def test_curves_hold_precision_of_every_epoch():
  table = tables.curves({("v", 3): history(scores(0.1, 0.2), scores(0.3, 0.4))})
  assert len(table) == 2 * len(SPLITS) * len(STAGES)
  (row,) = table[
    (table["epoch"] == 2) & (table["split"] == "test") & (table["stage"] == "one_stage")
  ].to_dict("records")
  assert (row["variant"], row["seed"]) == ("v", 3)
  assert row["score"] == pytest.approx(40)
