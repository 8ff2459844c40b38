"""The tables of an experiment: mean ± standard error over seeds, paired tests, choice of settings.

All scores are as shown (precision in percent), of test data unless a name says validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tf_twostage.metrics import FULL_INFORMATION, Metrics, Scores
from tf_twostage.training.loop import History, best_epoch

STAGES = {"one_stage": "generator alone", "two_stage": "generator + ranker"}


def every_seed(
  histories: Mapping[tuple[str, int], History], measures: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """One row a cell: variant, seed, best_epoch, selected (what chose it), scores of that epoch.

  Score columns are called split/stage/metric.
  """
  rows = []
  for (variant, seed), history in sorted(histories.items(), key=lambda item: item[0][1]):
    best = best_epoch(history)
    scores = {
      f"{split}/{stage}/{metric}": measures.shown(metrics, metric)
      for split, stages in best["scores"].items()
      for stage, metrics in stages.items()
      for metric in metrics
    }
    cell = {"variant": variant, "seed": seed, "best_epoch": best["epoch"]}
    selected = measures.measure(measures.selects).factor * best["selected"]
    rows.append({**cell, "selected": selected, **scores})
  return pd.DataFrame(rows)


def choose(families: Mapping[str, str], table: pd.DataFrame) -> list[str]:
  """Of every family, in order, the variant that validation data score highest on average.

  Args:
    families: family by variant.
    table: from `every_seed`.
  """
  score = table.groupby("variant")["selected"].mean()
  members: dict[str, list[str]] = {}
  for variant, family in families.items():
    members.setdefault(family, []).append(variant)
  return [max(variants, key=lambda v: score[v]) for variants in members.values()]


def sweep(
  table: pd.DataFrame, chosen: Sequence[str], measures: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """Mean and standard error of what validation data say of every variant; * marks the chosen."""
  grouped = table.groupby("variant", sort=False)["selected"]
  selects = f"validation {measures.selects}"
  result = pd.DataFrame({selects: grouped.mean(), "± se": grouped.sem()}).reset_index()
  result["chosen"] = np.where(result["variant"].isin(chosen), "*", "")
  return result


def summaries(
  table: pd.DataFrame,
  variants: Sequence[str],
  baselines: Mapping[str, Scores],
  measures: Metrics = FULL_INFORMATION,
) -> dict[str, pd.DataFrame]:
  """By stage: rows of variants, then of baselines; columns (metric, "mean" or "se").

  One seed has no standard error, nor has a baseline: NaN.
  """
  blocks = {}
  for stage in STAGES:
    columns = {f"test/{stage}/{metric}": metric for metric in measures.compared}
    grouped = table.groupby("variant")[list(columns)]
    learned = pd.concat({"mean": grouped.mean(), "se": grouped.sem()}, axis=1)
    learned = learned.swaplevel(axis=1).rename(columns=columns, level=0).loc[list(variants)]
    fixed = pd.DataFrame(
      {
        name: {
          (metric, "mean"): measures.shown(scores["test"][stage], metric)
          for metric in measures.compared
        }
        for name, scores in baselines.items()
      }
    ).T
    blocks[stage] = pd.concat({"learned": learned, "baseline": fixed}, names=["kind", "policy"])
  return blocks


def paired_tests(
  table: pd.DataFrame,
  variants: Sequence[str],
  against: Mapping[str, Scores] | None = None,
  measures: Metrics = FULL_INFORMATION,
) -> pd.DataFrame:
  """Do two variants differ in the headline over the same seeds? A row for each pair and stage.

  Args:
    table: from `every_seed`.
    variants: compared with each other.
    against: baselines that every variant is compared with, too.
    measures: name the headline.

  Returns:
    stage, first, second, seeds, difference (mean of first - second, points), standard_error, and
    two-sided p-values p_t (paired t-test) and p_wilcoxon (signed ranks); NaN where there are too
    few seeds, p-values also where all differ alike. They are not adjusted for the number of rows.
  """
  rows = []
  for stage in STAGES:
    column = f"test/{stage}/{measures.headline}"
    scores = table.pivot(index="seed", columns="variant", values=column)
    fixed = {
      name: measures.shown(given["test"][stage], measures.headline)
      for name, given in (against or {}).items()
    }
    pairs = [(a, b) for i, a in enumerate(variants) for b in variants[:i]]
    for first, second in [*pairs, *((a, b) for a in variants for b in fixed)]:
      other = scores[second] if second in scores else pd.Series(fixed[second], scores.index)
      rows.append(
        {
          "stage": stage,
          "first": first,
          "second": second,
          **_compare((scores[first] - other).dropna().to_numpy()),
        }
      )
  return pd.DataFrame(rows)


def _compare(difference: np.ndarray) -> dict[str, float]:
  result = {
    "seeds": len(difference),
    "difference": difference.mean(),
    "standard_error": np.nan,
    "p_t": np.nan,
    "p_wilcoxon": np.nan,
  }
  if len(difference) > 1:
    result["standard_error"] = stats.sem(difference)
  if len(difference) > 1 and np.ptp(difference) > 0:
    result["p_t"] = stats.ttest_1samp(difference, 0.0).pvalue
    result["p_wilcoxon"] = stats.wilcoxon(difference).pvalue
  return result


def curves(
  histories: Mapping[tuple[str, int], History], measures: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """The headline of every epoch: variant, seed, epoch, stage, split, score."""
  return pd.DataFrame(
    {
      "variant": variant,
      "seed": seed,
      "epoch": entry["epoch"],
      "split": split,
      "stage": stage,
      "score": measures.shown(metrics, measures.headline),
    }
    for (variant, seed), history in histories.items()
    for entry in history
    for split, stages in entry["scores"].items()
    for stage, metrics in stages.items()
  )


def to_text(
  blocks: Mapping[str, pd.DataFrame], reference: str, measures: Metrics = FULL_INFORMATION
) -> str:
  """For a terminal."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, measures, best="*{}".format, relative=False)
    cells.index = cells.index.get_level_values("policy")
    parts.append(f"{measures.title(STAGES[stage])}\n{cells.rename_axis(None).to_string()}")
  return "\n\n".join([*parts, "mean ± standard error over seeds; * best of the learned rows"])


def to_markdown(
  blocks: Mapping[str, pd.DataFrame], reference: str, measures: Metrics = FULL_INFORMATION
) -> str:
  """As published: relative improvement over `reference` in brackets, best learned row in bold."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, measures, best="**{}**".format)
    corner = ", ".join(filter(None, [STAGES[stage], measures.unit]))
    lines = [f"| {corner} | {' | '.join(cells.columns)} |"]
    lines.append("|" + "---|" * (len(cells.columns) + 1))
    for (kind, policy), row in zip(cells.index.tolist(), cells.to_numpy(), strict=True):
      name = policy if kind == "learned" else f"*{policy}*"
      lines.append(f"| {name} | {' | '.join(row)} |")
    parts.append("\n".join(lines))
  return "\n\n".join(parts) + "\n"


def to_latex(
  blocks: Mapping[str, pd.DataFrame], reference: str, measures: Metrics = FULL_INFORMATION
) -> str:
  """A tabular for each stage, in plain LaTeX."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, measures, best=r"\textbf{{{}}}".format)
    lines = [
      rf"% {measures.title(STAGES[stage])}",
      rf"\begin{{tabular}}{{l{'r' * len(cells.columns)}}}",
      r"\hline",
      " & ".join(["", *cells.columns]) + r" \\",
      r"\hline",
    ]
    kinds = list(cells.index.get_level_values("kind"))
    rows = zip(cells.index.tolist(), cells.to_numpy(), strict=True)
    for i, ((kind, policy), row) in enumerate(rows):
      if i and kind != kinds[i - 1]:
        lines.append(r"\hline")
      lines.append(" & ".join(map(_escape, [policy, *row])) + r" \\")
    parts.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
  return "\n\n".join(parts) + "\n"


def tests_to_text(tests: pd.DataFrame, measures: Metrics) -> str:
  """The paired tests, for a terminal."""
  if tests.empty:
    return "One variant: nothing to test against."
  decimals = measures.head.decimals + 1
  shown = tests.assign(
    difference=tests["difference"].map(f"{{:+.{decimals}f}}".format),
    standard_error=tests["standard_error"].map(f"{{:.{decimals}f}}".format),
    p_t=tests["p_t"].map("{:.2g}".format),
    p_wilcoxon=tests["p_wilcoxon"].map("{:.2g}".format),
  )
  return f"Paired over seeds, {measures.headline}\n{shown.to_string(index=False)}"


def _cells(
  block: pd.DataFrame,
  reference: str,
  measures: Metrics,
  *,
  best: Callable[[str], str],
  relative: bool = True,
) -> pd.DataFrame:
  """The numbers as text: "95.8 ± 0.1 (+2.0%)"."""
  cells = {}
  for metric, measure in measures.compared.items():
    mean, se = block[metric]["mean"], block[metric]["se"]
    top = mean["learned"].max()
    base = mean["learned", reference]
    column = []
    for (kind, policy), value in mean.items():
      text = measure.text(value, se[kind, policy])
      if relative and kind == "learned" and policy != reference and base > 0:
        text += f" ({100 * (value / base - 1):+.1f}%)"
      column.append(best(text) if kind == "learned" and value == top else text)
    cells[measure.heading] = pd.Series(column, index=block.index)
  return pd.DataFrame(cells)


def _escape(text: str) -> str:
  return text.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$")
