"""Tables of an experiment: means with errors over logs or seeds, paired tests, chosen settings.

Scores are in the printed units (precision in percent) and from test data unless named validation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy

from tf_twostage.metrics import FULL_INFORMATION, STAGES, Metrics, Scores
from tf_twostage.training.loop import History, best_epoch

_LEVEL = 0.05  # of tests; intervals cover 1 - _LEVEL


class Cell(NamedTuple):
  """One training run of an experiment."""

  variant: str
  log: int
  seed: int


Histories = Mapping[Cell, History]


class Results(NamedTuple):
  """The scores of an experiment by repetition.

  A repetition is a log, with means over its seeds, or a seed if there is only one log.

  Attributes:
    learned: tables [repetition, variant] by score, named as in `every_cell`.
    baselines: tables [repetition, baseline] by score; the same for all seeds of a log.
    repeated: "logs" or "seeds".
  """

  learned: Mapping[str, pd.DataFrame]
  baselines: Mapping[str, pd.DataFrame]
  repeated: str


def every_cell(histories: Histories, metrics: Metrics = FULL_INFORMATION) -> pd.DataFrame:
  """One row for each variant, log and seed: scores of the best epoch, named split/stage/metric.

  Further columns: variant, log, seed, best_epoch, and selected, the number that chose the epoch.
  """
  rows = []
  for cell, history in sorted(histories.items(), key=lambda item: item[0][1:]):
    best = best_epoch(history)
    selected = metrics.metric(metrics.selects).factor * best["selected"]
    first = {**cell._asdict(), "best_epoch": best["epoch"], "selected": selected}
    rows.append(first | _flat(best["scores"], metrics))
  return pd.DataFrame(rows)


def _flat(scores: Scores, metrics: Metrics) -> dict[str, float]:
  return {
    f"{split}/{stage}/{metric}": metrics.shown(values, metric)
    for split, stages in scores.items()
    for stage, values in stages.items()
    for metric in values
  }


def results(
  cells: pd.DataFrame,
  baselines: Mapping[int, Mapping[str, Scores]],
  metrics: Metrics = FULL_INFORMATION,
) -> Results:
  """Scores by repetition.

  Args:
    cells: from `every_cell`.
    baselines: scores by log and name.
    metrics: how scores are shown.
  """
  several = cells["log"].nunique() > 1
  repeated = "log" if several else "seed"
  scores = [name for name in map(str, cells) if name == "selected" or "/" in name]
  means = cells.groupby([repeated, "variant"])[scores].mean()
  learned = {score: means[score].unstack() for score in scores}
  fixed = {
    log: {name: _flat(of_one, metrics) for name, of_one in of_log.items()}
    for log, of_log in baselines.items()
  }
  repetitions = means.index.unique(repeated)
  flat = {
    score: pd.DataFrame(
      [
        {name: of_one[score] for name, of_one in fixed[log].items()}
        for log in (repetitions if several else [*fixed] * len(repetitions))
      ],
      repetitions,
    )
    for score in scores
    if score != "selected"
  }
  return Results(learned, flat, f"{repeated}s")


def curves(histories: Histories, metrics: Metrics = FULL_INFORMATION) -> pd.DataFrame:
  """The headline of every epoch: variant, log, seed, epoch, split, stage, score."""
  return pd.DataFrame(
    {
      **cell._asdict(),
      "epoch": entry["epoch"],
      "split": split,
      "stage": stage,
      "score": metrics.shown(values, metrics.headline),
    }
    for cell, history in histories.items()
    for entry in history
    for split, stages in entry["scores"].items()
    for stage, values in stages.items()
  )


def choose(families: Mapping[str, str], found: Results) -> list[str]:
  """The variant of each family that has the highest mean validation score; the first of equals.

  `families` maps variants to families, in the order of the result.
  """
  scores = found.learned["selected"].mean()[list(families)]
  return list(scores.groupby(pd.Series(families), sort=False).idxmax())


def sweep(
  variants: Sequence[str],
  found: Results,
  chosen: Sequence[str],
  metrics: Metrics = FULL_INFORMATION,
) -> pd.DataFrame:
  """Mean and standard error of the validation score of every variant; * marks the chosen."""
  scores = found.learned["selected"][list(variants)]
  columns = {f"validation {metrics.selects}": scores.mean(), "± se": scores.sem()}
  result = pd.DataFrame(columns).reset_index()
  return result.assign(chosen=np.where(result["variant"].isin(chosen), "*", ""))


def summaries(
  found: Results, variants: Sequence[str], metrics: Metrics = FULL_INFORMATION
) -> dict[str, pd.DataFrame]:
  """Means by stage: rows (kind, policy), columns (metric, "mean", "se" or "unbeaten").

  The kinds are "learned", the variants, and "baseline". A learned row is unbeaten in a metric if no
  other learned row is better by a paired t-test at 5%, with Holm's adjustment for the pairs of
  variants. Without repetitions there are no errors (NaN) and no tests (nothing is unbeaten).
  """
  blocks = {}
  for stage in STAGES:
    columns = {}
    for metric in metrics.compared:
      score = f"test/{stage}/{metric}"
      learned, fixed = found.learned[score][list(variants)], found.baselines[score]
      both = {"learned": learned.mean(), "baseline": fixed.mean()}
      of_fixed = fixed.sem() if found.repeated == "logs" else np.nan * fixed.mean()
      errors = {"learned": learned.sem(), "baseline": of_fixed}
      unbeaten = {"learned": _unbeaten(learned), "baseline": pd.Series(False, fixed.columns)}
      for name, parts in {"mean": both, "se": errors, "unbeaten": unbeaten}.items():
        columns[metric, name] = pd.concat(parts, names=["kind", "policy"])
    blocks[stage] = pd.DataFrame(columns)
  return blocks


def _unbeaten(learned: pd.DataFrame) -> pd.Series:
  """Whether no other column is significantly higher; see `summaries`."""
  pairs = list(itertools.combinations(learned, 2))
  differences = [(learned[a] - learned[b]).dropna().to_numpy() for a, b in pairs]
  p_values = holm([_p_t(difference) for difference in differences])
  beaten = {
    b if difference.mean() > 0 else a
    for (a, b), difference, p in zip(pairs, differences, p_values, strict=True)
    if p < _LEVEL
  }
  return pd.Series(~learned.columns.isin(beaten) & (len(learned) > 1), learned.columns)


def paired_tests(
  found: Results,
  variants: Sequence[str],
  against: Sequence[str] = (),
  metrics: Metrics = FULL_INFORMATION,
  metric: str | None = None,
) -> pd.DataFrame:
  """Tests whether two variants, or a variant and a baseline, differ in a metric.

  Args:
    found: the scores.
    variants: are compared with each other.
    against: baselines that each variant is compared with.
    metrics: names the headline.
    metric: is compared; None: the headline.

  Returns:
    A row for each stage and pair: stage, first, second, pairs (how many), difference (mean of
    first - second), standard_error, change_% (of the mean of first, relative to that of second)
    with its 95% interval change_low and change_high [Fieller 1954], two-sided p-values p_t (paired
    t-test) and p_wilcoxon (signed ranks), and p_holm, p_t adjusted for the number of rows. NaN
    where there are too few pairs, or no such number; p-values also where all differences are equal.
  """
  rows = []
  for stage in STAGES:
    score = f"test/{stage}/{metric or metrics.headline}"
    learned, fixed = found.learned[score], found.baselines[score]
    pairs = [(a, b, learned[b]) for i, a in enumerate(variants) for b in variants[:i]]
    pairs += [(a, b, fixed[b]) for a in variants for b in against]
    for first, second, other in pairs:
      paired = pd.concat([learned[first], other], axis=1).dropna().to_numpy()
      rows.append({"stage": stage, "first": first, "second": second, **_compare(*paired.T)})
  tests = pd.DataFrame(rows)
  return tests if tests.empty else tests.assign(p_holm=holm(tests["p_t"].to_numpy()))


def _compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
  difference, base = first - second, second.mean()
  low, high = ratio_interval(first, second)
  differ = len(difference) > 1 and np.ptp(difference) > 0
  return {
    "pairs": len(difference),
    "difference": difference.mean(),
    "standard_error": scipy.stats.sem(difference) if len(difference) > 1 else np.nan,
    "change_%": 100 * (first.mean() / base - 1) if base > 0 else np.nan,
    "change_low": 100 * (low - 1),
    "change_high": 100 * (high - 1),
    "p_t": _p_t(difference),
    "p_wilcoxon": scipy.stats.wilcoxon(difference).pvalue if differ else np.nan,
  }


def _p_t(difference: np.ndarray) -> float:
  """p-value of the two-sided t-test for mean 0; NaN: fewer than two differences, or all equal."""
  differ = len(difference) > 1 and np.ptp(difference) > 0
  return scipy.stats.ttest_1samp(difference, 0.0).pvalue if differ else np.nan


def ratio_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """95% interval of mean(first) / mean(second), for pairs [Fieller 1954].

  It holds the ratios q at which a paired t-test does not reject that first - q second has mean 0.

  Returns:
    Its limits. NaN: fewer than two pairs, or the mean of `second` may be 0.
  """
  n = len(first)
  if n < 2:
    return np.nan, np.nan
  (a, ab), (_, b) = np.cov(first, second) / n * scipy.stats.t.ppf(1 - _LEVEL / 2, n - 1) ** 2
  x, y = first.mean(), second.mean()
  square, linear, constant = y**2 - b, x * y - ab, x**2 - a
  if square <= 0:
    return np.nan, np.nan
  root = np.sqrt(max(0.0, linear**2 - square * constant))
  return (linear - root) / square, (linear + root) / square


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
  """p-values adjusted so that all tests together are wrong at most as often as one [Holm 1979].

  NaN, where nothing was tested, stays NaN and does not count.
  """
  p = np.asarray(p_values, float)
  order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN come last
  adjusted = np.full(len(p), np.nan)
  factors = np.arange(len(order), 0, -1)
  adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
  return adjusted


def tests_to_text(tests: pd.DataFrame, repeated: str, metrics: Metrics) -> str:
  """The paired tests, for a terminal."""
  if tests.empty:
    return "One variant: nothing to test against."
  number = f".{metrics.head.decimals + 1}f"
  formats = {
    "difference": f"{{:+{number}}}".format,
    "standard_error": f"{{:{number}}}".format,
    **dict.fromkeys(("change_%", "change_low", "change_high"), "{:+.1f}".format),
    **dict.fromkeys(("p_t", "p_wilcoxon", "p_holm"), "{:.2g}".format),
  }
  title = f"Paired over {repeated}, {metrics.headline}"
  if tests["p_t"].isna().all():
    title = f"Differences of {metrics.headline}; errors and tests need several {repeated}"
  shown = tests.dropna(axis="columns", how="all")
  used = {name: formats[name] for name in shown if name in formats}
  return f"{title}\n{shown.to_string(index=False, formatters=used, na_rep='-')}"


def to_text(
  blocks: Mapping[str, pd.DataFrame], repeated: str, metrics: Metrics = FULL_INFORMATION
) -> str:
  """The summaries for a terminal, * at unbeaten rows; `repeated` is what errors are over."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, None, metrics, mark="*{}".format)
    cells = cells.droplevel("kind").rename_axis(None)
    parts.append(f"{metrics.title(STAGES[stage])}\n{cells.to_string()}")
  note = (
    f"mean ± standard error over {repeated}; * no other learned row is better (paired t-test at 5%,"
    " adjusted by Holm for the pairs of learned rows)"
  )
  return "\n\n".join([*parts, note])


def to_markdown(
  blocks: Mapping[str, pd.DataFrame], reference: str, metrics: Metrics = FULL_INFORMATION
) -> str:
  """The summaries, change relative to `reference` in brackets, unbeaten rows in bold."""
  parts = []
  for stage, block in blocks.items():
    cells = _cells(block, reference, metrics, mark="**{}**".format)
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
    cells = _cells(block, reference, metrics, mark=r"\textbf{{{}}}".format)
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
  block: pd.DataFrame, reference: str | None, metrics: Metrics, *, mark: Callable[[str], str]
) -> pd.DataFrame:
  """The numbers as text: "95.8 ± 0.1 (+2.0%)"; without a reference no change."""
  cells = {}
  for name, metric in metrics.compared.items():
    column = []
    base = np.nan if reference is None else block[name]["mean"]["learned", reference]
    for (kind, policy), (mean, se, unbeaten) in block[name].iterrows():
      text = metric.text(mean, se)
      if kind == "learned" and policy != reference and base > 0:
        text += f" ({100 * (mean / base - 1):+.1f}%)"
      column.append(mark(text) if unbeaten else text)
    cells[metric.heading] = pd.Series(column, index=block.index)
  return pd.DataFrame(cells)


def _escape(text: str) -> str:
  return text.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$")
