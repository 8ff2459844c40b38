"""Estimates with their intervals, a panel for each kind of policy."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.evaluation.values import ESTIMATORS, LOGGING_POLICY

_MARKERS = ("o", "s", "^", "D", "v")
_SPREAD = 0.7  # of a policy's row, which its estimators share


def draw(estimates: pd.DataFrame, path: pathlib.Path) -> None:
  """Saves a PNG.

  Args:
    estimates: from `values.to_frame`, the logging policy's first.
    path: where it goes.
  """
  on_policy = estimates.iloc[0]
  targets = estimates[estimates["kind"] != LOGGING_POLICY]
  kinds = list(targets["kind"].unique())
  shown = {kind: list(targets["policy"][targets["kind"] == kind].unique()) for kind in kinds}

  def panels(figure):
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for i, (axis, kind) in enumerate(zip(axes, kinds, strict=True)):
      _panel(axis, targets[targets["kind"] == kind], shown[kind], on_policy)
      axis.set(title=kind, xlabel="mean reward of an item shown")
      if i and shown[kind] == shown[kinds[i - 1]]:  # their names would take the picture's width
        axis.set_yticklabels([])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.suptitle(
      f"Estimated values, {100 * on_policy['confidence']:g}% bootstrap intervals;"
      " hollow: the log tells too little"
    )

  rows = max(map(len, shown.values()))
  plotting.save({path: (3 + 4 * len(kinds), 2 + 0.7 * rows, panels)})


def _panel(axis, estimates: pd.DataFrame, policies: list[str], on_policy: pd.Series) -> None:
  offsets = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(ESTIMATORS))
  looks = dict(zip(ESTIMATORS, zip(offsets, plotting.COLORS, _MARKERS, strict=False), strict=True))
  for name, own in estimates.groupby("estimator", sort=False):
    offset, color, marker = looks[str(name)]
    y = own["policy"].map(policies.index) + offset
    axis.hlines(
      y, own["bootstrap_interval_low"], own["bootstrap_interval_high"], color=color, linewidth=1.3
    )
    for thin, label in ((False, name), (True, None)):
      part = own["thin"] == thin
      axis.scatter(
        own["value"][part],
        y[part],
        s=22,
        marker=marker,
        edgecolors=color,
        facecolors="white" if thin else color,
        zorder=3,
        label=label,
      )
  truths = estimates.drop_duplicates("policy").set_index("policy")["truth"]
  rows = np.arange(len(policies))
  if truths.notna().any():  # a log of one's own has no truth for the legend to promise
    axis.vlines(
      truths[policies],
      rows - 0.45,
      rows + 0.45,
      color="black",
      linewidth=2,
      zorder=2,
      label="true value",
    )
  axis.axvline(on_policy["value"], color="0.4", linestyle="--", linewidth=1.2, label=LOGGING_POLICY)
  axis.hlines(rows[:-1] + 0.5, 0, 1, transform=axis.get_yaxis_transform(), color="0.9", linewidth=1)
  axis.set_yticks(rows, [policy.replace(":", "\n") for policy in policies])
  axis.set_ylim(len(policies) - 0.5, -0.5)
  axis.set_xlim(_limits([*estimates["value"], *estimates["truth"], on_policy["value"]]))
  axis.grid(alpha=0.3, axis="x")


def _limits(inside: Sequence[float]) -> tuple[float, float]:
  """Limits that hold these numbers, NaN aside; an interval may reach beyond."""
  low, high = np.nanmin(inside), np.nanmax(inside)
  margin = 0.15 * (high - low) or 0.1
  return low - margin, high + margin
