"""The summary of a benchmark: the same objectives compared in several environments.

An environment is known by the files of its experiment: table.csv, a row for each training run, and
significance.csv, the paired tests.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.metrics import FULL_INFORMATION, STAGES

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SCORE = FULL_INFORMATION.headline
_LEVEL = 0.05
_COLUMNS = ["learned", "mean", "change", "low", "high"]
_OTHER_LIMIT = {"low": "high", "high": "low"}
_DARKEST = 15  # points below the best, in the figure


class Outcome(NamedTuple):
  """An experiment's runs and paired tests; see `tables.every_cell` and `tables.paired_tests`."""

  cells: pd.DataFrame
  tests: pd.DataFrame

  @classmethod
  def read(cls, directory: pathlib.Path) -> Outcome:
    tests = pd.read_csv(directory / "significance.csv")
    return cls(pd.read_csv(directory / "table.csv"), tests[tests["metric"] == _SCORE])

  @property
  def repetitions(self) -> str:
    """What errors are over, such as "10 logs"."""
    logs, seeds = self.cells["log"].nunique(), self.cells["seed"].nunique()
    count, unit = (logs, "log") if logs > 1 else (seeds, "seed")
    return f"{count} {unit}{'s' * (count > 1)}"

  def compared(self, stage: str) -> pd.DataFrame:
    """Every objective and popularity against the first objective, in one stage.

    Returns:
      A row for each policy: learned; mean, the test score as shown; its change against the first
      objective in %, with the 95% interval from low to high; and unbeaten: whether no other
      objective is better by the paired test, adjusted by Holm.
    """
    means = self.cells.groupby("variant", sort=False)[f"test/{stage}/{_SCORE}"].mean()
    reference = means.index[0]
    tests = self.tests[self.tests["stage"] == stage].set_index(["first", "second"])
    rows = {reference: {"learned": True, "mean": means[reference], "change": 0.0}}
    for variant in means.index[1:]:
      change = tests.loc[(variant, reference), ["change_%", "change_low", "change_high"]]
      rows[variant] = {"learned": True, "mean": means[variant]}
      rows[variant] |= dict(zip(("change", "low", "high"), change, strict=True))
    for name in tests.index.unique("second").difference(means.index):
      change = tests.loc[(reference, name)]
      rows[name] = {"learned": False, "mean": means[reference] - change["difference"]}
      rows[name] |= {"change": _inverse(change["change_%"])}
      # The interval of the inverse ratio has the inverse limits, in the other order [Fieller 1954];
      # it is unbounded, and not shown, where the ratio may be 0.
      if change["change_low"] > -100:
        rows[name] |= {n: _inverse(change[f"change_{m}"]) for n, m in _OTHER_LIMIT.items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)
    sure = tests[tests["p_holm"] < _LEVEL].reset_index()
    beaten = np.where(sure["difference"] > 0, sure["second"], sure["first"])
    beaten = beaten[sure["second"].isin(means.index)]
    tested = bool(tests["p_holm"].notna().any())
    unbeaten = [tested and p in means.index and p not in beaten for p in table.index]
    return table.assign(unbeaten=unbeaten)


def _inverse(change: float) -> float:
  """The change from a to b in %, from that of b to a."""
  return 100 / (1 + change / 100) - 100


def to_markdown(outcomes: Mapping[str, Outcome]) -> str:
  """A table for each stage: environments, and the change of each objective, with its interval.

  Below them are each objective's mean rank and how far it is below the best at most.
  """
  return "\n\n".join(_stage_table(outcomes, stage) for stage in STAGES) + "\n"


def _stage_table(outcomes: Mapping[str, Outcome], stage: str) -> str:
  found = {name: outcome.compared(stage) for name, outcome in outcomes.items()}
  policies = _policies(found)
  reference = policies[0]
  rows = []
  for name, table in found.items():
    shown = [_cell(table.T[p], p == reference) if p in table.index else "" for p in policies]
    rows.append([name, outcomes[name].repetitions, *shown])
  means = pd.DataFrame({n: t["mean"][t["learned"].astype(bool)] for n, t in found.items()})
  complete = means.dropna().reindex(policies)
  ranks, below = complete.rank(ascending=False).mean(axis=1), (means.max() - complete).max(axis=1)
  for title, values, digits in (("mean rank", ranks, 2), ("most below the best, points", below, 1)):
    rows.append([title, "", *("" if np.isnan(v) else f"{v:.{digits}f}" for v in values)])
  head = [f"{STAGES[stage]}: {_SCORE}", "errors over", *policies]
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _policies(found: Mapping[str, pd.DataFrame]) -> list[str]:
  """All policies, the reference first and what is not learned last."""
  names = dict.fromkeys(name for table in found.values() for name in table.index)
  return sorted(names, key=lambda name: not any(t["learned"].get(name) for t in found.values()))


def _cell(row: pd.Series, is_reference: bool) -> str:
  interval = "" if np.isnan(row["low"]) else f" [{row['low']:+.1f}, {row['high']:+.1f}]"
  text = f"{row['mean']:.1f}" if is_reference else f"{row['change']:+.1f}%{interval}"
  return f"**{text}**" if row["unbeaten"] else text


def by_environment(outcomes: Mapping[str, Outcome]) -> Figure:
  """Test scores in two stages, a row for each environment; the darker, the further below the best.

  Policies are ordered by their mean rank. Scores that no other objective beats are bold.
  """
  stage = "two_stage"
  found = {name: outcome.compared(stage) for name, outcome in outcomes.items()}
  means = pd.DataFrame({name: table["mean"] for name, table in found.items()}).astype(float)
  ranks = means.rank(ascending=False).mean(axis=1)
  means = means.loc[ranks.sort_values(kind="stable").index].T
  below = means.rsub(means.max(axis=1), axis=0).to_numpy()
  figure = plotting.figure(2.5 + 1.05 * means.shape[1], 1.6 + 0.45 * len(means))
  axis = figure.subplots()
  image = axis.imshow(below, cmap="Blues", vmin=0, vmax=_DARKEST, aspect="auto")
  figure.colorbar(image, label="points below the best", extend="max")
  unbeaten = pd.DataFrame({name: table["unbeaten"] for name, table in found.items()}).T
  bold = unbeaten.eq(True)[means.columns].to_numpy()
  for (row, column), mean in np.ndenumerate(means.to_numpy()):
    if not np.isnan(mean):
      color = "white" if below[row, column] > _DARKEST / 2 else "black"
      weight = "bold" if bold[row, column] else "normal"
      axis.text(column, row, f"{mean:.1f}", ha="center", va="center", weight=weight, color=color)
  axis.set_xticks(range(means.shape[1]), means.columns, rotation=30, ha="right")
  axis.set_yticks(range(len(means)), [f"{n} ({outcomes[n].repetitions})" for n in means.index])
  axis.set_title(f"{STAGES[stage]}: test {_SCORE}, best mean rank on the left")
  return figure
