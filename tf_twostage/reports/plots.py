"""Figures of one run, of an experiment, and of estimated policy values."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

from tf_twostage import plotting
from tf_twostage.evaluation.values import LOGGING_POLICY
from tf_twostage.metrics import FULL_INFORMATION, STAGES, Metrics, Scores
from tf_twostage.reports.tables import Results
from tf_twostage.training.loop import History, best_epoch

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_LINES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_BASELINE_MARKERS = ("+", "x", "1", "2")
_BASELINE_COLOR = "0.4"
_MARKS_A_CURVE = 10
_ROW_HEIGHT = 0.85  # of a policy's row, for its estimators; rows are 1 apart


def run_curves(
  history: History,
  baselines: Mapping[str, Scores],
  title: str,
  metrics: Metrics = FULL_INFORMATION,
  turn_epochs: int = 0,
) -> Figure:
  """By epoch: training loss, the headline of both stages, and the score that chose the epoch.

  Scores are of validation data; a vertical line marks the chosen epoch. The loss has other marks in
  epochs in which the ranker learns, every second turn of `turn_epochs`; 0: there are no turns.
  """
  figure = plotting.figure(13, 7)
  axes = figure.subplots(2, 2)
  epochs = [entry["epoch"] for entry in history]
  chosen = best_epoch(history)["epoch"]
  loss = [entry["training"]["mean_loss"] for entry in history]
  axes[0, 0].plot(epochs, loss, ".-k")
  of_ranker = [i for i, e in enumerate(epochs) if turn_epochs and (e - 1) // turn_epochs % 2]
  if of_ranker:
    x, y = np.take(epochs, of_ranker), np.take(loss, of_ranker)
    axes[0, 0].plot(x, y, "ok", markerfacecolor="white", label="the ranker learns")
    axes[0, 0].legend()
  axes[0, 0].set(title="training loss", ylabel="mean loss of the epoch")
  factor = metrics.metric(metrics.selects).factor
  axes[0, 1].plot(epochs, [factor * entry["selected"] for entry in history], ".-k")
  label = f"{metrics.selects}, validation {metrics.population}"
  axes[0, 1].set(title=f"score that chose epoch {chosen}", ylabel=_lines(label))
  for axis, (stage, name) in zip(axes[1], STAGES.items(), strict=True):
    scores = [entry["scores"]["validation"][stage] for entry in history]
    curve = [metrics.shown(of_epoch, metrics.headline) for of_epoch in scores]
    axis.plot(epochs, curve, ".-", label="this run", color=plotting.COLORS[0])
    levels = {
      name: metrics.shown(of["validation"][stage], metrics.headline)
      for name, of in baselines.items()
    }
    _baseline_lines(axis, axis.axhline, _drawn(pd.Series(levels, dtype=float)))
    axis.set(title=name, ylabel=_lines(metrics.caption("validation")))
  for axis in axes.flat:
    _by_epoch(axis)
    axis.axvline(chosen, color=plotting.COLORS[1], linewidth=1.2, label="chosen epoch", zorder=1)
  figure.suptitle(title)
  plotting.legend_below(figure, axes[1, 0])
  return figure


def _lines(label: str) -> str:
  """The label in lines that are no longer than an axis."""
  return textwrap.fill(label, 32)


class Experiment(NamedTuple):
  """The figures of an experiment, of `tables.results` and `tables.curves`.

  Variants are in the order of the legend. Baselines are lines; "random" is left out, as it would
  flatten everything else.
  """

  results: Results
  curves: pd.DataFrame
  variants: Sequence[str]
  metrics: Metrics = FULL_INFORMATION

  def save(self, directory: pathlib.Path) -> None:
    """Writes curves.png, losses.png, stages.png and seeds.png."""
    figures = (self.by_epoch, self.by_loss, self.by_stage, self.by_seed)
    names = ("curves.png", "losses.png", "stages.png", "seeds.png")
    plotting.save({directory / name: draw for name, draw in zip(names, figures, strict=True)})

  def by_epoch(self) -> Figure:
    """The headline on validation data by epoch."""
    figure = plotting.figure(12, 4.5)
    axes = figure.subplots(1, 2)
    for axis, (stage, name) in zip(axes, STAGES.items(), strict=True):
      of_stage = (self.curves["stage"] == stage) & (self.curves["split"] == "validation")
      for i, variant in enumerate(self.variants):
        shown = self.curves[of_stage & (self.curves["variant"] == variant)]
        grouped = shown.groupby("epoch")["score"]
        mean, sd = grouped.mean(), grouped.std().fillna(0.0)
        look, every = plotting.look(i), -(-len(mean) // _MARKS_A_CURVE)
        axis.plot(mean.index, mean, label=variant, **look, markersize=4, markevery=every)
        band = mean - sd, mean + sd
        axis.fill_between(mean.index, *band, color=look["color"], alpha=0.15, linewidth=0)
      _baseline_lines(axis, axis.axhline, self._baselines("validation", stage))
      axis.set(title=name, ylabel=_lines(self.metrics.caption("validation")))
      _by_epoch(axis)
    figure.suptitle("By epoch: mean over all runs, band of one standard deviation")
    plotting.legend_below(figure, axes[0])
    return figure

  def by_loss(self) -> Figure:
    """Mean test scores by variant with 95% confidence intervals."""

    def draw(axis, i: int, scores: np.ndarray) -> None:
      n = len(scores)
      half = scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(scores) if n > 1 else 0.0
      axis.errorbar(scores.mean(), -i, xerr=half, capsize=4, markersize=5, **plotting.look(i))

    title = f"By loss: mean over {self.results.repeated}, 95% confidence interval"
    return self._by_variant(draw, title, 0.4)

  def by_seed(self) -> Figure:
    """Test scores of every repetition by variant."""

    def draw(axis, i: int, scores: np.ndarray) -> None:
      spread = np.linspace(-0.25, 0.25, len(scores)) if len(scores) > 1 else np.zeros(1)
      axis.scatter(scores, spread - i, s=14, alpha=0.7, zorder=3, **plotting.look(i))
      axis.plot([np.median(scores)] * 2, [-i - 0.35, -i + 0.35], color="black", linewidth=1.5)

    title = f"A point for each of the {self.results.repeated}, in order from below; bar: median"
    return self._by_variant(draw, title, 0.5)

  def by_stage(self) -> Figure:
    """Test scores in two stages against those in one, a point for every repetition."""
    figure = plotting.figure(7, 5.5)
    axis = figure.subplots()
    one, two = (self._scores(stage) for stage in STAGES)
    for i, variant in enumerate(self.variants):
      axis.scatter(one[i], two[i], s=25, alpha=0.7, label=variant, **plotting.look(i))
    levels = (self._baselines("test", stage) for stage in STAGES)
    for i, (name, (x, y)) in enumerate(pd.concat(levels, axis=1).T.items()):
      marker = _BASELINE_MARKERS[i % len(_BASELINE_MARKERS)]
      axis.scatter(x, y, s=90, label=name, marker=marker, color=_BASELINE_COLOR)
    limits = axis.axis()  # set by the points alone, not by the line
    axis.axline((limits[0], limits[0]), slope=1, color="0.8", linewidth=1, zorder=0)
    axis.axis(limits)
    caption = self.metrics.caption("test")
    axis.set(
      title=f"Points are {self.results.repeated}; on the line the ranker changes nothing",
      xlabel=f"{caption}, {STAGES['one_stage']}",
      ylabel=f"{caption}, {STAGES['two_stage']}",
    )
    axis.grid(alpha=0.3)
    plotting.legend_below(figure, axis)
    return figure

  def _scores(self, stage: str) -> list[np.ndarray]:
    """Test scores of each variant, one for each repetition."""
    scores = self.results.learned[f"test/{stage}/{self.metrics.headline}"]
    return [scores[variant].to_numpy() for variant in self.variants]

  def _baselines(self, split: str, stage: str) -> pd.Series:
    """Mean scores of the baselines that are drawn."""
    return _drawn(self.results.baselines[f"{split}/{stage}/{self.metrics.headline}"].mean())

  def _by_variant(
    self, draw: Callable[[Any, int, np.ndarray], None], title: str, height: float
  ) -> Figure:
    """A panel for each stage, a row for each variant from the top, test scores along x.

    `draw` draws the scores of a variant in row i of an axis; `height` is that of a row, in inches.
    """
    figure = plotting.figure(12, 1.4 + height * len(self.variants))
    axes = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(self.variants))
    for axis, (stage, name) in zip(axes, STAGES.items(), strict=True):
      for i, scores in enumerate(self._scores(stage)):
        draw(axis, i, scores)
      _baseline_lines(axis, axis.axvline, self._baselines("test", stage))
      if self.metrics.unit == "%":  # errors may reach beyond what scores can be
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, 0), min(high, 100))
      axis.set(title=name, xlabel=self.metrics.caption("test"), ylim=(0.4 - len(rows), 0.6))
      # The loss and its settings on two lines: a long name would take the width of the panel.
      axis.set_yticks(-rows, [v.replace(":", "\n", 1) for v in self.variants])
      axis.grid(alpha=0.3, axis="x")
    figure.suptitle(title)
    plotting.legend_below(figure, axes[0])
    return figure


def policy_values(estimates: pd.DataFrame, what: str) -> Figure:
  """Estimates with bootstrap intervals and true values, a panel for each kind of policy.

  `what` says what a value is, for the axes.
  """
  logging, targets = estimates.iloc[0], estimates[estimates["kind"] != LOGGING_POLICY]
  kinds = targets.groupby("kind", sort=False)
  figure = plotting.figure(3 + 4 * len(kinds), 2 + 0.7 * kinds["policy"].nunique().max())
  axes = figure.subplots(1, len(kinds), squeeze=False, sharex=True)[0]
  # Intervals of unreliable estimates may be so wide that they would hide all others.
  bounds = ["bootstrap_interval_low", "bootstrap_interval_high"]
  inside = [estimates[["value", "truth"]], estimates.loc[~estimates["unreliable"], bounds]]
  numbers = np.concatenate([frame.to_numpy(float).ravel() for frame in inside])
  low, high = np.nanmin(numbers), np.nanmax(numbers)
  margin = 0.05 * (high - low) or 0.1
  axes[0].set_xlim(low - margin, high + margin)
  beside: list[str] = []
  for axis, (kind, group) in zip(axes, kinds, strict=True):
    policies = list(group["policy"].unique())
    _policy_values(axis, group, policies, logging)
    axis.set(title=kind, xlabel=what)
    if policies == beside:  # the panel to the left has the same names
      axis.set_yticklabels([])
    beside = policies
  plotting.legend_below(figure, axes[0])
  figure.suptitle(
    f"Estimated values, {100 * logging['confidence']:g}% bootstrap intervals\n"
    "hollow: unreliable; arrow: the interval goes on beyond the axis"
  )
  return figure


def _policy_values(axis, estimates: pd.DataFrame, policies: list[str], logging: pd.Series) -> None:
  """One panel: a row for each policy, a mark for each estimator."""
  groups = list(estimates.groupby("estimator", sort=False))
  for i, (name, own) in enumerate(groups):
    look = plotting.look(i)
    y = own["policy"].map(policies.index) + _ROW_HEIGHT * ((i + 0.5) / len(groups) - 0.5)
    low, high = own["bootstrap_interval_low"], own["bootstrap_interval_high"]
    axis.hlines(y, low, high, color=look["color"], linewidth=1.3)
    left, right = axis.get_xlim()
    for edge, marker, cut in ((left, "<", low < left), (right, ">", high > right)):
      arrows = {"marker": marker, "color": look["color"], "s": 30, "clip_on": False, "zorder": 4}
      axis.scatter(np.full(cut.sum(), edge), y[cut], **arrows)
    for hollow, label in ((False, name), (True, None)):
      part = own["unreliable"] == hollow
      axis.scatter(
        own["value"][part],
        y[part],
        s=22,
        marker=look["marker"],
        edgecolors=look["color"],
        facecolors="white" if hollow else look["color"],
        zorder=3,
        label=label,
      )
  truths = estimates.drop_duplicates("policy").set_index("policy")["truth"][policies]
  rows = np.arange(len(policies))
  if truths.notna().any():
    bars = {"ymin": rows - 0.45, "ymax": rows + 0.45}
    axis.vlines(truths, **bars, color="black", linewidth=2, zorder=2, label="true value")
  axis.axvline(logging["value"], color="0.4", linestyle="--", linewidth=1.2, label=LOGGING_POLICY)
  axis.hlines(rows[:-1] + 0.5, 0, 1, transform=axis.get_yaxis_transform(), color="0.9", linewidth=1)
  axis.set_yticks(rows, [policy.replace(":", "\n") for policy in policies])
  axis.set_ylim(len(policies) - 0.5, -0.5)
  axis.grid(alpha=0.3, axis="x")


def _drawn(levels: pd.Series) -> pd.Series:
  return levels.drop("random", errors="ignore")


def _baseline_lines(axis, line: Callable[..., Any], levels: pd.Series) -> None:
  for i, (name, level) in enumerate(levels.items()):
    style = _LINES[i % len(_LINES)]
    line(level, linestyle=style, linewidth=1.2, label=name, color=_BASELINE_COLOR, zorder=1)
  axis.autoscale_view()  # lines alone do not make room for themselves


def _by_epoch(axis) -> None:
  axis.set(xlabel="epoch")
  axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
  axis.grid(alpha=0.3)
