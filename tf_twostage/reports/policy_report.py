"""What an evaluation leaves: tables for a terminal, CSV, JSON, a picture."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from tf_twostage.evaluation import values
from tf_twostage.evaluation.evaluation_log import EvaluationLog
from tf_twostage.evaluation.values import ESTIMATORS, LOGGING_POLICY, Valuation
from tf_twostage.reports import policy_plots
from tf_twostage.workspace import write_text

_IN_FULL = 7  # up to so many policies are printed with all that is known of them

Number = Callable[[float], str]


def write(
  valuations: Sequence[Valuation],
  evaluation: EvaluationLog,
  explained: float,
  directory: pathlib.Path,
) -> str:
  """Writes estimates.csv, .json and .png, and agreement.csv where truths are known.

  Args:
    valuations: the logging policy's first.
    evaluation: the log.
    explained: the share of its rewards' variance that the reward model explains.
    directory: where the files go.

  Returns:
    what to print.
  """
  frame = values.to_frame(valuations)
  agreement = values.agreement(frame)
  directory.mkdir(parents=True, exist_ok=True)
  write_text(directory / "estimates.csv", frame.to_csv(index=False, float_format="%.8g"))
  if not agreement.empty:
    write_text(directory / "agreement.csv", agreement.to_csv(float_format="%.6g"))
  write_text(
    directory / "estimates.json",
    json.dumps(
      {
        "notes": evaluation.notes,
        "rows": len(evaluation),
        "independent_units": int(frame["num_units"].iloc[0]),
        "reward_model_explains": _json(explained),
        "estimates": [
          {name: _json(value) for name, value in row.items()} for row in frame.to_dict("records")
        ],
        "agreement": [
          {name: _json(value) for name, value in row.items()}
          for row in agreement.reset_index().to_dict("records")
        ],
      },
      indent=2,
    )
    + "\n",
  )
  policy_plots.draw(frame, directory / "estimates.png")
  return _text(valuations, frame, agreement, evaluation, explained, directory)


def _json(value):
  """NaN, which JSON does not know, as null."""
  return None if isinstance(value, float) and np.isnan(value) else value


def _text(
  valuations: Sequence[Valuation],
  frame: pd.DataFrame,
  agreement: pd.DataFrame,
  evaluation: EvaluationLog,
  explained: float,
  directory: pathlib.Path,
) -> str:
  on_policy = frame.iloc[0]
  number = _format(on_policy["standard_error"])
  of_users = f" of {on_policy['num_units']} users" if evaluation.grouped else ""
  parts = [
    f"Value: the mean reward of an item shown. {len(evaluation)} rows{of_users},"
    f" {100 * on_policy['confidence']:g}% intervals by {'user' if evaluation.grouped else 'row'}.",
    f"The logging policy earned {_with_error(on_policy, number)}{_true(on_policy, number)}.",
  ]
  if len(valuations) <= _IN_FULL:
    parts += [_in_full(v, number) for v in valuations[1:]]
  else:
    targets = frame[frame["kind"] != LOGGING_POLICY]
    parts += [
      f"{str(kind).capitalize()}\n{_overview(group, number)}"
      for kind, group in targets.groupby("kind", sort=False)
    ]
    parts.append(
      "Value ± standard error; ! where the log tells too little (why: estimates.csv). ess:"
      " effective rows of snips."
    )
  if not agreement.empty:
    parts.append("Estimates against true values\n" + _agreement(agreement, number))
  parts += [
    *evaluation.notes,
    f"The reward model explains {_percent(explained)} of the variance of rewards it has not seen.",
    f"Estimates and picture: {directory}",
  ]
  return "\n\n".join(parts)


def _format(standard_error: float) -> Number:
  """Numbers to two digits of this standard error."""
  sure = np.isfinite(standard_error) and standard_error > 0
  decimals = int(np.clip(1 - np.floor(np.log10(standard_error)), 0, 8)) if sure else 4
  return lambda value: "-" if np.isnan(value) else f"{value:.{decimals}f}"


def _percent(share: float) -> str:
  return f"{np.round(100 * share) + 0.0:.0f}%"  # + 0.0: not "-0%"


def _with_error(row: pd.Series, number: Number) -> str:
  return f"{number(row['value'])} ± {number(row['standard_error'])}"


def _true(row: pd.Series, number: Number) -> str:
  return "" if np.isnan(row["truth"]) else f" (true value {number(row['truth'])})"


def _in_full(valuation: Valuation, number: Number) -> str:
  """All estimators of one policy, and their warnings."""
  frame = values.to_frame([valuation])
  table = pd.DataFrame(
    {
      "value": frame["value"].map(number),
      "s.e.": frame["standard_error"].map(number),
      "normal": _interval(frame, "interval", number),
      "bootstrap": _interval(frame, "bootstrap_interval", number),
      "ess": frame["effective_sample_size"].map(_whole),
      "largest weight": frame["max_weight"].map(lambda x: "-" if np.isnan(x) else f"{x:.3g}"),
    }
  ).set_axis(frame["estimator"].rename(None))
  told: dict[str, list[str]] = {}
  for estimate in valuation.estimates:
    for warning in estimate.warnings:
      told.setdefault(warning, []).append(estimate.estimator)
  warnings = [f"! {', '.join(names)}: {warning}" for warning, names in told.items()]
  title = f"{valuation.policy}, {valuation.kind}{_true(frame.iloc[0], number)}"
  return "\n".join([title, table.to_string(), *warnings])


def _interval(frame: pd.DataFrame, name: str, number: Number) -> list[str]:
  bounds = zip(frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
  return [f"{number(low)} to {number(high)}" for low, high in bounds]


def _whole(value: float) -> str:
  return "-" if np.isnan(value) else f"{value:.0f}"


def _overview(group: pd.DataFrame, number: Number) -> str:
  """A row for each policy, a column for each estimator."""
  columns: dict[str, pd.Series] = {}
  for name in ESTIMATORS:
    own = group[group["estimator"] == name].set_index("policy")
    columns[name] = own.apply(
      lambda row: _with_error(row, number) + (" !" if row["thin"] else "  "), axis=1
    )
    if name == "snips":
      sizes = own["effective_sample_size"].map(_whole)
    truth = own["truth"].map(number)
  return pd.DataFrame({**columns, "ess": sizes, "true": truth}).rename_axis(None).to_string()


def _agreement(agreement: pd.DataFrame, number: Number) -> str:
  shown = pd.DataFrame(
    {
      "policies": agreement["policies"],
      "spearman": agreement["spearman"].map("{:.2f}".format),
      "kendall": agreement["kendall"].map("{:.2f}".format),
      "mean error": agreement["error"].map(number),
      "rmse": agreement["rmse"].map(number),
      "in normal": agreement["in_normal"],
      "in bootstrap": agreement["in_bootstrap"],
      "regret": agreement["regret"].map(number),
    }
  )
  return shown.rename_axis([None, None]).to_string()
