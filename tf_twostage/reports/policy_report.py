"""The report of an evaluation of policies: text, CSV, JSON and a plot."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.evaluation import values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import LOGGING_POLICY
from tf_twostage.metrics import TWO_STAGES
from tf_twostage.reports import plots
from tf_twostage.workspace import write_json, write_text

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_IN_FULL = 6  # up to this many policies are printed with all columns and warnings

Number = Callable[[float], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """Estimated values of policies; prints as a report.

  Attributes:
    log: the rows that the policies were evaluated on.
    estimates: one row for each policy and estimator, the logging policy first; see
      `values.evaluate`.
    explained: share of the variance of the rewards that the reward model explains; None if no
      estimator needed a model.
  """

  log: EvaluationLog
  estimates: pd.DataFrame
  explained: float | None = None

  def to_frame(self) -> pd.DataFrame:
    """One row for each policy and estimator: value, standard error, intervals, warnings, ..."""
    return self.estimates.drop(columns="influence")

  def differences(self) -> pd.DataFrame:
    """How much more one policy earns than another, for all pairs; see `values.differences`."""
    return values.differences(self.estimates)

  def select(self, kind: str | None = None, penalty: float = 1.0) -> pd.DataFrame:
    """Policies by doubly robust value less a penalty for thin support, the best first.

    Args:
      kind: of the policies; None: of generators with the ranker.
      penalty: see `values.ranked_by_support`.
    """
    largest = float(self.log.rewards.max())
    kinds = TWO_STAGES.values() if kind is None else [kind]
    return values.ranked_by_support(self.estimates, kinds, largest, penalty)

  def plot(self) -> Figure:
    """Values with their intervals, by policy and estimator."""
    return plots.policy_values(self.estimates, self._what)

  def save(self, directory: str | os.PathLike) -> str:
    """Writes estimates.csv, .json and .png, differences.csv if there are several policies, and
    agreement.csv where true values are known.

    Returns:
      The report, with the name of the directory.
    """
    directory = pathlib.Path(directory)
    agreement = values.agreement(self.estimates)
    flat = self.to_frame().assign(warnings=self.estimates["warnings"].map("; ".join))
    differences = self.differences()
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "estimates.csv", flat.to_csv(index=False, float_format="%.8g"))
    if not differences.empty:
      text = differences.to_csv(index=False, float_format="%.8g")
      write_text(directory / "differences.csv", text)
    if not agreement.empty:
      write_text(directory / "agreement.csv", agreement.to_csv(float_format="%.6g"))
    record = {
      "notes": self.log.notes,
      "rows": len(self.log),
      "independent_units": int(self.estimates["num_units"].iloc[0]),
      "reward_model_explains": self.explained,
      "estimates": flat.to_dict("records"),
      "agreement": agreement.reset_index().to_dict("records"),
    }
    write_json(directory / "estimates.json", record)
    plotting.save({directory / "estimates.png": self.plot})
    return f"{self}\n\nEstimates and plot: {directory}"

  @property
  def _what(self) -> str:
    """What a value is."""
    slates = self.log.slates is not None
    return "mean sum of the rewards of a slate" if slates else "mean reward of an item shown"

  def __str__(self) -> str:
    """For a terminal: few policies with all columns, many with a line each."""
    logging, targets = (
      self.estimates.iloc[0],
      self.estimates[self.estimates["kind"] != LOGGING_POLICY],
    )
    number = _format(logging["standard_error"])
    of_users = f" of {logging['num_units']} users" if self.log.grouped else ""
    if self.log.slates is None:
      rows, unit = f"{len(self.log)} rows", "row"
    else:
      rows, unit = f"{len(self.log.slates)} slates with {len(self.log)} slots", "slate"
    parts = [
      f"Value: the {self._what}. {rows}{of_users}, {100 * logging['confidence']:g}% intervals by"
      f" {'user' if self.log.grouped else unit}.",
      f"The logging policy earned {_with_error(logging, number)}{_true(logging, number)}.",
    ]
    policies = targets.groupby(["policy", "kind"], sort=False)
    if len(policies) <= _IN_FULL:
      parts += [_in_full(group, number) for _, group in policies]
      if len(policies) > 1:
        parts.append(_differences(self.differences(), number))
    else:
      kinds = targets.groupby("kind", sort=False)
      parts += [f"{str(k).capitalize()}\n{_overview(group, number)}" for k, group in kinds]
      parts.append(
        "Value ± standard error; ! unreliable (reasons: warnings in estimates.csv). ess: effective"
        " sample size of the first estimator with weights."
      )
    agreement = values.agreement(self.estimates)
    if not agreement.empty:
      parts.append("Estimates against true values\n" + _agreement(agreement, number))
    parts += self.log.notes
    if self.explained is not None:
      share = np.round(100 * self.explained)
      parts.append(
        f"The reward model explains {share + 0.0:.0f}% of the variance of rewards it has not seen."
        if share >= 0
        else "The reward model predicts rewards it has not seen worse than their mean does (R² ="
        f" {self.explained:.2f})."
      )
    return "\n\n".join(parts)

  __repr__ = __str__

  def _repr_html_(self) -> str:
    shown = ["policy", "kind", "estimator", "value", "standard_error", "effective_sample_size"]
    table = self.estimates[[*shown, "unreliable"]]
    return table.to_html(index=False, float_format="{:.4g}".format)


def _format(standard_error: float) -> Number:
  """Formats numbers to two digits of this standard error."""
  known = np.isfinite(standard_error) and standard_error > 0
  decimals = int(np.clip(1 - np.floor(np.log10(standard_error)), 0, 8)) if known else 4
  return lambda value: "-" if np.isnan(value) else f"{value:.{decimals}f}"


def _with_error(row: pd.Series, number: Number) -> str:
  return f"{number(row['value'])} ± {number(row['standard_error'])}"


def _true(row: pd.Series, number: Number) -> str:
  return "" if np.isnan(row["truth"]) else f" (true value {number(row['truth'])})"


def _in_full(group: pd.DataFrame, number: Number) -> str:
  """All estimators of one policy, and their warnings."""

  def interval(name: str) -> list[str]:
    bounds = zip(group[f"{name}_low"], group[f"{name}_high"], strict=True)
    return [f"{number(low)} to {number(high)}" for low, high in bounds]

  columns = {
    "value": group["value"].map(number),
    "s.e.": group["standard_error"].map(number),
    "normal": interval("interval"),
    "bootstrap": interval("bootstrap_interval"),
    "at least": group["lower_bound"].map(number),
    "more than logged": interval("gain_interval"),
    "ess": group["effective_sample_size"].map(_whole),
    "largest weight": group["max_weight"].map(lambda x: "-" if np.isnan(x) else f"{x:.3g}"),
  }
  table = pd.DataFrame(columns).set_axis(group["estimator"].rename(None))
  first, reasons = group.iloc[0], group.explode("warnings").dropna(subset="warnings")
  warnings = [
    f"! {', '.join(of_reason['estimator'])}: {reason}"
    for reason, of_reason in reasons.groupby("warnings", sort=False)
  ]
  title = f"{first['policy']}, {first['kind']}{_true(first, number)}"
  return "\n".join([title, table.to_string(), *warnings])


def _differences(frame: pd.DataFrame, number: Number) -> str:
  """One policy minus another, by the first of these estimators that was computed."""
  name = next(
    (n for n in ("dr", "sndr", "snips", "snpbm", "sniips") if n in set(frame["estimator"])),
    None,
  )
  own = frame[frame["estimator"] == (name or frame["estimator"].iloc[0])]
  bounds = zip(own["low"], own["high"], strict=True)
  columns = {
    "difference": own["difference"].map(number),
    "interval": [f"{number(low)} to {number(high)}" for low, high in bounds],
    "": own["unreliable"].map({True: "!", False: ""}),
  }
  pairs = own["policy"] + ", " + own["kind"] + " - " + own["versus"] + ", " + own["versus_kind"]
  table = pd.DataFrame(columns).set_axis(pairs).rename_axis(None)
  legend = "; !: one of the two estimates is unreliable" if own["unreliable"].any() else ""
  return f"Differences by {own['estimator'].iloc[0]}, paired{legend}\n{table.to_string()}"


def _whole(value: float) -> str:
  return "-" if np.isnan(value) else f"{value:.0f}"


def _overview(group: pd.DataFrame, number: Number) -> str:
  """A row for each policy, a column for each estimator."""
  marks = group["unreliable"].map({True: " !", False: "  "})
  text = group.apply(_with_error, axis=1, number=number) + marks
  group = group.assign(text=text).set_index("policy")
  columns = {name: own["text"] for name, own in group.groupby("estimator", sort=False)}
  weighted = group[group["effective_sample_size"].notna()].groupby("estimator", sort=False)
  sizes = next((own["effective_sample_size"].map(_whole) for _, own in weighted), "-")
  truth = next(own["truth"].map(number) for _, own in group.groupby("estimator", sort=False))
  table = pd.DataFrame({**columns, "ess": sizes, "true": truth})
  return table.rename_axis(None).to_string()


def _agreement(agreement: pd.DataFrame, number: Number) -> str:
  formats = dict.fromkeys(["error", "rmse", "regret"], number)
  formats |= dict.fromkeys(["spearman", "kendall"], "{:.2f}".format)
  shown = agreement.rename_axis([None, None])
  headings = {"error": "mean error", "in_normal": "in normal", "in_bootstrap": "in bootstrap"}
  formats = {headings.get(name, name): to_text for name, to_text in formats.items()}
  return shown.rename(columns=headings).to_string(formatters=formats)
