"""The report's picture: propensities, items, time, weights."""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.data.check.examine import item_counts, policy_weights, uniform_weights
from tf_twostage.data.log import BanditLog
from tf_twostage.data.policy_table import PolicyTable

_BINS = 50


def draw(data: BanditLog, policy: PolicyTable | None, path: pathlib.Path) -> None:
  """Saves a PNG of four panels.

  Args:
    data: the good rows of a log.
    policy: another policy, or None.
    path: where it goes.
  """

  def panels():
    figure = plotting.figure(12, 8)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{data.name}: {len(data.rows):,} rows, {data.num_items:,} items")
    _propensities(axes[0, 0], data)
    _items(axes[0, 1], data)
    _when(axes[1, 0], data)
    _weights(axes[1, 1], data, policy)
    for axis in axes[:, 0]:
      axis.yaxis.set_major_formatter("{x:,.0f}")
    return figure

  plotting.save({path: panels})


def _propensities(axis, data: BanditLog) -> None:
  axis.set(title="Propensities of the rows", xlabel="propensity", ylabel="rows")
  propensity = data.rows.propensity
  if propensity is None:
    _say(axis, "not logged")
    return
  uniform = 1 / data.num_items
  low, high = min(propensity.min(), uniform) / 1.5, max(propensity.max(), uniform) * 1.5
  bins = np.geomspace(low, high, _BINS)
  axis.hist(propensity, bins=bins, color=plotting.COLORS[0])
  axis.axvline(
    uniform, color=plotting.COLORS[1], linestyle="--", label=f"1 / items = {uniform:.3g}"
  )
  axis.set_xscale("log")
  axis.legend()


def _items(axis, data: BanditLog) -> None:
  counts = np.sort(item_counts(data))[::-1]
  shown = counts[counts > 0]
  axis.plot(np.arange(1, len(shown) + 1), shown, color=plotting.COLORS[0], label="times shown")
  never = len(counts) - len(shown)
  if never:
    axis.axvspan(len(shown) + 0.5, len(counts) + 0.5, color="0.85", label=f"never shown: {never}")
  axis.set(
    title="Items, most shown first",
    xlabel="rank of the item",
    ylabel="rows",
    yscale="log",
    xlim=(0.5, len(counts) + 0.5),
  )
  axis.legend()


def _when(axis, data: BanditLog) -> None:
  if data.time is None or data.time.min() == data.time.max():
    axis.set(title="Rows and reward over time", xlabel="time", ylabel="rows")
    _say(axis, "no times")
    return
  rewarded = int((data.rows.reward > 0).sum())
  rows, edges = np.histogram(data.time, int(np.clip(rewarded / 5, 5, _BINS)))
  reward, _ = np.histogram(data.time, edges, weights=data.rows.reward)
  is_date = edges[0] > 1e8 and edges[-1] < 1e11
  place = pd.to_datetime(edges, unit="s") if is_date else edges
  axis.stairs(rows, place, fill=True, color="0.8")
  axis.set(
    title="Rows and mean reward over time", xlabel="time", ylabel="rows (grey)", ylim=(0, None)
  )
  with np.errstate(invalid="ignore"):
    mean = reward / rows
  other = axis.twinx()
  other.plot(place[:-1] + (place[1] - place[0]) / 2, mean, ".-", color=plotting.COLORS[1])
  other.set_ylabel("mean reward", color=plotting.COLORS[1])
  other.set_ylim(0, 1.15 * np.nanmax(mean) or 1)
  if is_date:
    for label in axis.get_xticklabels():
      label.set(rotation=25, horizontalalignment="right")


def _weights(axis, data: BanditLog, policy: PolicyTable | None) -> None:
  axis.set(
    title="Share of all weight in the heaviest rows",
    xlabel="heaviest rows, % of all",
    ylabel="their share of the weight, %",
  )
  if data.rows.propensity is None:
    _say(axis, "no propensities")
    return
  weights = {"uniform policy": uniform_weights(data)}
  if policy is not None:
    weights["given policy"] = policy_weights(data, policy)
  for (name, values), color in zip(weights.items(), plotting.COLORS, strict=False):
    heaviest = np.cumsum(np.sort(values)[::-1]) / values.sum()
    place = np.unique(np.geomspace(1, len(values), 500).astype(int))
    axis.plot(100 * place / len(values), 100 * heaviest[place - 1], color=color, label=name)
  equal = np.geomspace(100 / len(data.rows), 100, 500)
  axis.plot(equal, equal, "--", color="0.5", label="all weights equal")
  axis.set_xscale("log")
  axis.set_ylim(0, 105)
  axis.legend(loc="upper left")


def _say(axis, text: str) -> None:
  axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="0.4")
