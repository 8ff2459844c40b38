"""Tables of an experiment: mean ± standard error over seeds, paired tests, choice of settings.

Scores are in the printed units (precision in percent) and from test data unless named validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tf_twostage.metrics import FULL_INFORMATION, STAGES, Metrics, Scores
from tf_twostage.training.loop import History, best_epoch

Histories = Mapping[tuple[str, int], History]  # by (variant, seed)


def every_seed(histories: Histories, metrics: Metrics = FULL_INFORMATION) -> pd.DataFrame:
  """One row for each variant and seed: scores of the best epoch, in columns split/stage/metric.

  Further columns: variant, seed, best_epoch, and selected, the number that chose the epoch.
  """
  rows = []
  for (variant, seed), history in sorted(histories.items(), key=lambda item: item[0][1]):
    best = best_epoch(history)
    scores = {
      f"{split}/{stage}/{metric}": metrics.shown(values, metric)
      for split, stages in best["scores"].items()
      for stage, values in stages.items()
      for metric in values
    }
    selected = metrics.metric(metrics.selects).factor * best["selected"]
    cell = {"variant": variant, "seed": seed, "best_epoch": best["epoch"], "selected": selected}
    rows.append(cell | scores)
  return pd.DataFrame(rows)


def curves(histories: Histories, metrics: Metrics = FULL_INFORMATION) -> pd.DataFrame:
  """The headline of every epoch: variant, seed, epoch, split, stage, score."""
  return pd.DataFrame(
    {
      "variant": variant,
      "seed": seed,
      "epoch": entry["epoch"],
      "split": split,
      "stage": stage,
      "score": metrics.shown(values, metrics.headline),
    }
    for (variant, seed), history in histories.items()
    for entry in history
    for split, stages in entry["scores"].items()
    for stage, values in stages.items()
  )


def choose(families: Mapping[str, str], table: pd.DataFrame) -> list[str]:
  """The variant of each family that has the highest mean validation score; the first of equals.

  `families` maps variants to families, in the order of the result; `table` is from `every_seed`.
  """
  scores = table.groupby("variant")["selected"].mean()[list(families)]
  return list(scores.groupby(pd.Series(families), sort=False).idxmax())


def sweep(
  table: pd.DataFrame, chosen: Sequence[str], metrics: Metrics = FULL_INFORMATION
) -> pd.DataFrame:
  """Mean and standard error of the validation score of every variant; * marks the chosen."""
  grouped = table.groupby("variant", sort=False)["selected"]
  columns = {f"validation {metrics.selects}": grouped.mean(), "± se": grouped.sem()}
  result = pd.DataFrame(columns).reset_index()
  return result.assign(chosen=np.where(result["variant"].isin(chosen), "*", ""))


def summaries(
  table: pd.DataFrame,
  variants: Sequence[str],
  baselines: Mapping[str, Scores],
  metrics: Metrics = FULL_INFORMATION,
) -> dict[str, pd.DataFrame]:
  """Means over seeds by stage: rows (kind, policy), columns (metric, "mean" or "se").

  The kinds are "learned", the variants, and "baseline". Baselines and single seeds have no
  standard error: NaN.
  """
  blocks = {}
  for stage in STAGES:
    columns = {f"test/{stage}/{metric}": metric for metric in metrics.compared}
    grouped = table.groupby("variant")[list(columns)]
    learned = pd.concat({"mean": grouped.mean(), "se": grouped.sem()}, axis=1)
    learned = learned.swaplevel(axis=1).rename(columns=columns, level=0).loc[list(variants)]
    fixed = {
      name: {(m, "mean"): metrics.shown(scores["test"][stage], m) for m in metrics.compared}
      for name, scores in baselines.items()
    }
    blocks[stage] = pd.concat(
      {"learned": learned, "baseline": pd.DataFrame(fixed).T}, names=["kind", "policy"]
    )
  return blocks


def paired_tests(
  table: pd.DataFrame,
  variants: Sequence[str],
  against: Mapping[str, Scores] | None = None,
  metrics: Metrics = FULL_INFORMATION,
) -> pd.DataFrame:
  """Tests whether two variants, or a variant and a baseline, differ in the headline.

  Returns:
    A row for each stage and pair: stage, first, second, seeds, difference (mean of first -
    second), standard_error, and two-sided p-values p_t (paired t-test) and p_wilcoxon (signed
    ranks). NaN where there are too few seeds; p-values also where all differences are equal. They
    are not adjusted for the number of rows.
  """
  rows = []
  for stage in STAGES:
    column = f"test/{stage}/{metrics.headline}"
    scores = table.pivot(index="seed", columns="variant", values=column)
    fixed = {
      name: metrics.shown(of_baseline["test"][stage], metrics.headline)
      for name, of_baseline in (against or {}).items()
    }
    pairs = [(a, b) for i, a in enumerate(variants) for b in variants[:i]]
    for first, second in [*pairs, *((a, b) for a in variants for b in fixed)]:
      other = scores[second] if second in scores else fixed[second]
      difference = (scores[first] - other).dropna().to_numpy()
      rows.append({"stage": stage, "first": first, "second": second, **_compare(difference)})
  return pd.DataFrame(rows)


def _compare(difference: np.ndarray) -> dict[str, float]:
  several = len(difference) > 1
  differ = several and np.ptp(difference) > 0
  return {
    "seeds": len(difference),
    "difference": difference.mean(),
    "standard_error": stats.sem(difference) if several else np.nan,
    "p_t": stats.ttest_1samp(difference, 0.0).pvalue if differ else np.nan,
    "p_wilcoxon": stats.wilcoxon(difference).pvalue if differ else np.nan,
  }


def tests_to_text(tests: pd.DataFrame, metrics: Metrics) -> str:
  """The paired tests, for a terminal."""
  if tests.empty:
    return "One variant: nothing to test against."
  number, p_value = f".{metrics.head.decimals + 1}f", "{:.2g}".format
  formats = {
    "difference": f"{{:+{number}}}".format,
    "standard_error": f"{{:{number}}}".format,
    "p_t": p_value,
    "p_wilcoxon": p_value,
  }
  shown = tests.to_string(index=False, formatters=formats)
  return f"Paired over seeds, {metrics.headline}\n{shown}"


def to_text(
  blocks: Mapping[str, pd.DataFrame], reference: str, metrics: Metrics = FULL_INFORMATION
) -> str:
  """The summaries for a terminal, * at the best learned row."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, metrics, best="*{}".format, relative=False)
    cells = cells.droplevel("kind").rename_axis(None)
    parts.append(f"{metrics.title(STAGES[stage])}\n{cells.to_string()}")
  return "\n\n".join([*parts, "mean ± standard error over seeds; * best of the learned rows"])


def to_markdown(
  blocks: Mapping[str, pd.DataFrame], reference: str, metrics: Metrics = FULL_INFORMATION
) -> str:
  """The summaries, improvement over `reference` in brackets, the best learned row in bold."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, metrics, best="**{}**".format)
    names = [policy if kind == "learned" else f"*{policy}*" for kind, policy in cells.index]
    corner = ", ".join(filter(None, [STAGES[stage], metrics.unit]))
    rows = [[corner, *cells.columns], ["---"] * (cells.shape[1] + 1)]
    rows += [[name, *row] for name, row in zip(names, cells.to_numpy(), strict=True)]
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
  return "\n\n".join(parts) + "\n"


def to_latex(
  blocks: Mapping[str, pd.DataFrame], reference: str, metrics: Metrics = FULL_INFORMATION
) -> str:
  """The summaries as a plain LaTeX tabular for each stage."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, metrics, best=r"\textbf{{{}}}".format)
    lines = [
      rf"% {metrics.title(STAGES[stage])}",
      rf"\begin{{tabular}}{{l{'r' * cells.shape[1]}}}",
      r"\hline",
      " & ".join(["", *cells.columns]) + r" \\",
    ]
    for _, of_kind in cells.groupby("kind", sort=False):
      lines.append(r"\hline")
      for (_, policy), row in zip(of_kind.index, of_kind.to_numpy(), strict=True):
        lines.append(" & ".join(map(_escape, [policy, *row])) + r" \\")
    parts.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
  return "\n\n".join(parts) + "\n"


def _cells(
  block: pd.DataFrame,
  reference: str,
  metrics: Metrics,
  *,
  best: Callable[[str], str],
  relative: bool = True,
) -> pd.DataFrame:
  """The numbers as text: "95.8 ± 0.1 (+2.0%)"."""
  cells = {}
  for name, metric in metrics.compared.items():
    mean, se = block[name]["mean"], block[name]["se"]
    top, base = mean["learned"].max(), mean["learned", reference]
    column = []
    for (kind, policy), value in mean.items():
      text = metric.text(value, se[kind, policy])
      if relative and kind == "learned" and policy != reference and base > 0:
        text += f" ({100 * (value / base - 1):+.1f}%)"
      column.append(best(text) if kind == "learned" and value == top else text)
    cells[metric.heading] = pd.Series(column, index=block.index)
  return pd.DataFrame(cells)


def _escape(text: str) -> str:
  return text.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$")
