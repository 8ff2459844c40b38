"""The plot of a report: propensities, items, time, weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tf_twostage import plotting
from tf_twostage.data.check import slates
from tf_twostage.data.check.facts import MILLISECONDS
from tf_twostage.data.policy_table import PolicyTable

if TYPE_CHECKING:
  from tf_twostage.data.log import BanditLog

_WIDTH, _HEIGHT = 12, 8  # inches
_BINS = 50


def weights(log: BanditLog, policy: PolicyTable | None = None) -> np.ndarray:
  """Importance weights π/β of a policy, by default the uniform one, [n]."""
  probability = 1 / log.rows.choices(log.num_items)
  if policy is not None:
    probability = policy.probabilities[policy.rows(log.rows.position), log.rows.action]
  return probability / np.asarray(log.rows.propensity, np.float64)


def figure(log: BanditLog, policy: PolicyTable | None) -> Any:
  """A matplotlib figure of four panels, and of two more for slates."""
  columns = 2 if log.slate is None else 3
  made = plotting.figure(_WIDTH * columns / 2, _HEIGHT)
  axes = made.subplots(2, columns)
  made.suptitle(f"{log.name}: {len(log):,} rows, {log.num_items:,} items")
  _propensities(axes[0, 0], log)
  _items(axes[0, 1], log)
  _over_time(axes[1, 0], log)
  _weights(axes[1, 1], log, policy)
  if log.slate is not None:
    _slots(axes[0, 2], log)
    if log.policy is None or log.time is None or log.time.min() == log.time.max():
      _sizes(axes[1, 2], log.slate)
    else:
      _policies(axes[1, 2], log, log.time, log.policy)
  for axis in axes[:, 0]:
    axis.yaxis.set_major_formatter("{x:,.0f}")
  return made


def _propensities(axis, log: BanditLog) -> None:
  axis.set(title="Propensities of the rows", xlabel="propensity", ylabel="rows")
  propensity = log.rows.propensity
  if propensity is None:
    _write(axis, "not logged")
    return
  uniform = 1 / log.num_items
  low, high = min(propensity.min(), uniform) / 1.5, max(propensity.max(), uniform) * 1.5
  wide = _scale(axis, "x", low, high)
  bins = np.geomspace(low, high, _BINS) if wide else np.linspace(low, high, _BINS)
  axis.hist(propensity, bins=bins, color=plotting.COLORS[0])
  axis.axvline(
    uniform, color=plotting.COLORS[1], linestyle="--", label=f"1 / items = {uniform:.3g}"
  )
  axis.legend()


def _scale(axes, which: str, low: float, high: float) -> bool:
  """Makes an axis logarithmic, labelled at powers of ten, if it spans two of them."""
  wide = high >= 100 * low
  if wide:
    axes.set(**{f"{which}scale": "log"})
    getattr(axes, f"{which}axis").set_minor_formatter("")  # labels between would overlap
  return wide


def _items(axis, log: BanditLog) -> None:
  counts = np.sort(log.rows.shown(log.num_items))[::-1]
  shown = counts[counts > 0]
  axis.plot(np.arange(1, len(shown) + 1), shown, color=plotting.COLORS[0], label="times shown")
  never = len(counts) - len(shown)
  if never:
    axis.axvspan(len(shown) + 0.5, len(counts) + 0.5, color="0.85", label=f"never shown: {never}")
  axis.set(
    title="Items, most shown first",
    xlabel="rank of the item",
    ylabel="rows",
    xlim=(0.5, len(counts) + 0.5),
  )
  _scale(axis, "y", shown.min(), shown.max())
  axis.legend()


def _over_time(axis, log: BanditLog) -> None:
  if log.time is None or log.time.min() == log.time.max():
    axis.set(title="Rows and reward over time", xlabel="time", ylabel="rows")
    _write(axis, "no times")
    return
  rewarded = int((log.rows.reward > 0).sum())
  rows, edges = np.histogram(log.time, int(np.clip(rewarded / 5, 5, _BINS)))
  reward, _ = np.histogram(log.time, edges, weights=log.rows.reward)
  place = _moments(axis, edges)
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


def _weights(axis, log: BanditLog, policy: PolicyTable | None) -> None:
  axis.set(
    title="Share of all weight in the heaviest rows",
    xlabel="heaviest rows, % of all",
    ylabel="their share of the weight, %",
  )
  if log.rows.propensity is None:
    _write(axis, "no propensities")
    return
  curves = {"uniform policy": weights(log)}
  if policy is not None:
    curves["given policy"] = weights(log, policy)
  for (name, values), color in zip(curves.items(), plotting.COLORS, strict=False):
    heaviest = np.cumsum(np.sort(values)[::-1]) / values.sum()
    place = np.unique(np.geomspace(1, len(values), 500).astype(int))
    axis.plot(100 * place / len(values), 100 * heaviest[place - 1], color=color, label=name)
  equal = np.geomspace(100 / len(log.rows), 100, 500)
  axis.plot(equal, equal, "--", color="0.5", label="all weights equal")
  _scale(axis, "x", equal[0], 100)
  axis.set_ylim(0, 105)
  axis.legend(loc="upper left")


def _slots(axis, log: BanditLog) -> None:
  """The mean reward of each slot, by policy if there are several, with 95% intervals."""
  axis.set(title="Mean reward by slot", xlabel="slot", ylabel="mean reward")
  chosen: dict[str, Any] = {"all rows": slice(None)}
  if log.policy is not None:
    chosen = {log.policies[code]: log.policy == code for code in _frequent(log)}
  for i, (name, rows) in enumerate(chosen.items()):
    found = slates.by_slot(log, rows)
    look = {**plotting.look(i), "linewidth": 1, "markersize": 4, "capsize": 2}
    axis.errorbar(found.index, found["mean"], 1.96 * found["sem"], label=name, **look)
  axis.set_ylim(0, None)
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.legend()


def _sizes(axis, slate: np.ndarray) -> None:
  """How many slates have how many rows."""
  rows = np.unique(slate, return_counts=True)[1]
  size, times = np.unique(rows, return_counts=True)
  axis.bar(size, times, color=plotting.COLORS[0])
  axis.set(title="Rows of a slate", xlabel="rows", ylabel="slates", xlim=(0, size.max() + 1))
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.yaxis.set_major_formatter("{x:,.0f}")


def _policies(axis, log: BanditLog, time: np.ndarray, policy: np.ndarray) -> None:
  """The rows of each of the most frequent policies over time."""
  edges = np.linspace(time.min(), time.max(), _BINS)
  for i, code in enumerate(_frequent(log)):
    rows, _ = np.histogram(time[policy == code], edges)
    axis.stairs(rows, _moments(axis, edges), color=plotting.COLORS[i], label=log.policies[code])
  axis.set(title="Rows of each policy", xlabel="time", ylabel="rows", ylim=(0, None))
  axis.yaxis.set_major_formatter("{x:,.0f}")
  axis.legend()


def _frequent(log: BanditLog) -> np.ndarray:
  """Codes of the policies with the most rows, as many as there are colors."""
  counts = np.bincount(np.asarray(log.policy), minlength=len(log.policies))
  return np.argsort(-counts, kind="stable")[: len(plotting.COLORS)]


def _moments(axis, seconds: np.ndarray) -> Any:
  """Places of times on the x axis, which shows dates if they are some."""
  from matplotlib.dates import ConciseDateFormatter

  if not (seconds[0] > 1e8 and seconds[-1] < MILLISECONDS):
    return seconds
  axis.xaxis_date()
  axis.xaxis.set_major_formatter(ConciseDateFormatter(axis.xaxis.get_major_locator()))
  return pd.to_datetime(seconds, unit="s")


def _write(axis, text: str) -> None:
  axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="0.4")
